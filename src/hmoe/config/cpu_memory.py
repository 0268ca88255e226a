"""What a training step needs of a CPU's memory at the moment when it needs most. No torch.

    forward pass | loss | backward pass: last block ... first block | update

Saved activations are largest at the loss, gradients at the end of the backward pass: a step needs the most at one of
the moments between them, and what is told by part is what is there then.
"""

from hmoe.config.counts import count_parameters, estimate_activated_width
from hmoe.config.offload import count_held_bytes, find_expert_share
from hmoe.config.placement_costs import PlacementCosts
from hmoe.config.run import RunConfig
from hmoe.config.step_work import count_number_bytes
from hmoe.config.weight_share import list_weight_shares
from hmoe.specs.chunk import count_chunk_tokens
from hmoe.specs.placement import EVEN_LOAD, ExpertLoad

Parts = dict[str, float]
# Of an MoE router per token and expert, and per token and choice: scores, decisions, places, gates.
_EXPERT_NUMBERS, _CHOICE_NUMBERS = 2.5, 11


def estimate_cpu_memory(
    config: RunConfig, num_processes: int, load: ExpertLoad | None = None
) -> dict[str, int]:
    """Return the bytes of a training step of each process, by part; see `hmoe.config.memory.estimate_memory_by_part`.

    Tensors, at the moment when they are most; a uniform router. Measured by benchmarks/planned_memory.py.
    """
    return _find_largest(config, num_processes, load)[1]


def describe_largest_moment(config: RunConfig, num_processes: int, load: ExpertLoad | None = None) -> str:
    """Return when in a step a process needs most, in words."""
    return _find_largest(config, num_processes, load)[0]


def _find_largest(
    config: RunConfig, num_processes: int, load: ExpertLoad | None
) -> tuple[str, dict[str, int]]:
    step = _Step(config, num_processes, load)
    moments = {
        "at the loss": step.at_loss(),
        "in the backward pass of the last block": step.in_last_block(),
        "in the backward pass of the first block": step.in_first_block(),
        "in the backward pass of the embedding": step.in_embedding(),
        "at the update": step.at_update(),
    }
    if num_processes > 1 and config.model.layers > 1:
        moments["in the forward pass, while the last block's weights come"] = step.in_last_forward()
        moments["in the backward pass, while the last block's gradients are sent"] = step.in_block_before()
    name, parts = max(moments.items(), key=lambda moment: sum(moment[1].values()))
    return name, {part: round(value) for part, value in parts.items()}


class _Step:
    """Sizes in bytes from which the moments of a step are put together."""

    def __init__(self, config: RunConfig, num_processes: int, load: ExpertLoad | None) -> None:
        model, train = config.model, config.train
        self._model, self._config = model, config
        self._weight = count_number_bytes(config)
        self._compute = 2 if train.precision == "bfloat16" else self._weight
        self._tokens = config.data.batch_tokens // config.data.num_micro_batches
        self._recomputes = train.recomputes_blocks
        parts = {name: self._weight * size for name, size in count_parameters(model).items()}
        # What experts that lie elsewhere take, whatever the moment; where they are placed the rest is told apart below.
        self._held = float(count_held_bytes(config, find_expert_share(config, num_processes, load)))
        parts["experts"] *= num_processes > 1 or not self._held
        self._network = float(parts["hyper"])  # it serves all blocks, and is none's
        self._outside = float(parts["embedding"] + parts["head"]) + self._network
        self._block = (sum(parts.values()) - self._outside) / model.layers
        self._embedding = float(self._weight * model.vocab * model.dim)
        self._layers = [layer in model.moe_layers for layer in range(model.layers)]
        self._is_shared, self._is_exact = num_processes > 1, config.parallel.exact
        self._placed = None
        if config.parallel.places_experts and num_processes > 1:
            self._placed = PlacementCosts(config, num_processes, load or EVEN_LOAD)
        experts = sum(parts[name] for name in ("router", "experts", "shared", "zero")) / model.layers
        sizes = (self._outside, self._block, experts)
        shares, self._computed = list_weight_shares(config, num_processes, sizes, self._placed)
        self._shares = shares
        self._own = sum(share.own for share in shares)
        self._before = sum(share.before for share in shares)

    def in_last_forward(self) -> Parts:
        """Of several processes: the last block's weights have come, and are copied into place."""
        saved = self._saved_by_all() - self._saved(self._layers[-1])
        return self._put_together(
            gathered=self._gather(0) + sum(share.arrive(2) for share in self._shares),
            gradients=self._before if self._gathers_in_last_pass() else 0.0,
            activations=saved + self._stream(),
            loss=0.0,
            copies=0.0 if self._recomputes else self._copies(len(self._layers) - 1),
        )

    def at_loss(self) -> Parts:
        """Logits of a chunk become their derivatives; gradients of the head, and what a chunk adds to them."""
        model, weight = self._model, self._weight
        chunk = min(self._tokens, count_chunk_tokens(model.vocab, "cpu"))
        converted = 2 * self._compute * model.vocab * model.dim if self._compute < weight else 0
        logits = chunk * model.vocab * weight
        # Those of the next chunk are made before those of the last one are gone.
        second = logits if chunk < self._tokens else 0
        saved = self._model.layers * self._stream() if self._recomputes else self._saved_by_all()
        # The engine lets go of the last block's weights, as they came, when it gathers others.
        came = sum(share.arrive(1) for share in self._shares) if self._gathers_in_last_pass() else 0.0
        return self._put_together(
            gathered=self._gather(0) + came,
            gradients=self._before,
            activations=saved,
            loss=self._embedding + logits + max(second, self._embedding) + converted + 2 * self._stream(),
            copies=0.0 if self._recomputes else self._copies(len(self._layers)),
        )

    def in_last_block(self) -> Parts:
        """The activations of all blocks are still there, and the last one's gradients are made."""
        is_sparse = self._layers[-1]
        return self._put_together(
            gathered=self._gather(0),
            gradients=self._before + self._head(),
            activations=self._saved_by_all() + self._passing(is_sparse),
            loss=self._stream(),
            copies=self._copies(len(self._layers)) + self._new_gradients(is_sparse),
        )

    def in_block_before(self) -> Parts:
        """Of several processes: gradients of the last block are on their way to those who keep their rows."""
        last, is_sparse = self._layers[-1], self._layers[-2]
        freed = self._stream() if self._recomputes else self._saved(last)
        return self._put_together(
            gathered=self._gather(1),
            gradients=self._before + self._head() + self._send(),
            activations=self._saved_by_all() - freed + self._passing(is_sparse),
            loss=self._stream(),
            copies=self._copies(len(self._layers) - 1) + self._new_gradients(is_sparse),
        )

    def in_first_block(self) -> Parts:
        """One block's activations are left, and the gradients of the others are there."""
        is_sparse, num_others = self._layers[0], len(self._layers) - 1
        gradients = self._own
        if not self._before:  # what this block and the embedding will have is not there yet
            gradients -= (
                self._own
                * (self._block + self._embedding)
                / (self._outside + self._block * len(self._layers))
            )
        return self._put_together(
            gathered=self._gather(num_others),
            gradients=gradients + self._send() * (num_others > 0),
            activations=self._saved(is_sparse) + self._passing(is_sparse),
            loss=0.0,
            copies=self._copies(1) + self._new_gradients(is_sparse),
        )

    def in_embedding(self) -> Parts:
        """The last gradients are made; of several processes those outside of blocks are sent."""
        extra = self._embedding * (bool(self._before) + self._model.tied)
        if self._is_shared:
            rows = self._outside / self._shares[0].group
            # Whole ones and a copy that is sent; in exact mode what is received, and sums, too.
            extra = 2 * self._outside - rows
            if self._is_exact:
                extra = self._before + 3 * (self._outside + rows)
        return self._put_together(
            gathered=self._gather(len(self._layers)),
            gradients=self._own + extra,
            activations=2 * self._stream(),
            loss=0.0,
            copies=0.0,
        )

    def at_update(self) -> Parts:
        """Nothing but weights, gradients and moments, and what exact mode adds up or computes of all at once."""
        computed = self._own * self._is_exact
        if self._is_exact and not self._is_shared:
            computed = max(computed, self._before + self._own)
        return self._put_together(0.0, self._own, 0.0, 0.0, computed)

    def _put_together(
        self, gathered: float, gradients: float, activations: float, loss: float, copies: float
    ) -> Parts:
        return {
            "parameters": self._own + gathered,
            "gradients": gradients,
            "optimizer": 2 * self._own,
            "copies": copies,
            "activations": activations,
            "loss": loss,
            "offloaded experts": self._held,
        }

    def _gathers_in_last_pass(self) -> bool:
        """Return whether weights come for a step's last forward pass, too: it is the only one, or all gather."""
        return not self._before or self._config.parallel.sharding == "zero3"

    def _gather(self, num_done: int) -> float:
        return sum(share.gather(num_done) for share in self._shares)

    def _head(self) -> float:
        """Return gradients of the head and the hypernetwork that are not added to those that are there.

        Those of a tied head wait for the embedding's, those of several processes until all of a block are there.
        """
        is_added = self._before and self._shares[0].is_whole and not self._model.tied
        return 0.0 if is_added else self._embedding + self._network

    def _send(self) -> float:
        return sum(share.send() for share in self._shares)

    def _stream(self) -> float:
        """Return the bytes of the residual stream of a micro-batch."""
        return self._tokens * self._model.dim * self._weight

    def _saved_by_all(self) -> float:
        """Return what is kept of all blocks until the backward pass, or inputs of blocks and one that is recomputed."""
        if self._recomputes:
            return self._model.layers * self._stream() + self._saved(self._layers[-1])
        return sum(map(self._saved, self._layers))

    def _saved(self, is_sparse: bool) -> float:
        """Return what a block keeps for its backward pass: what both norms read, and what both parts keep."""
        return 2 * self._stream() + self._saved_by_attention() + self._saved_by_ffn(is_sparse)

    def _saved_by_attention(self) -> float:
        model = self._model
        queries, keys = self._count_heads()
        if self._compute == self._weight and not model.qk_norm:
            # One product of queries, keys and values, then one rotation.
            return self._tokens * (model.dim + 3 * queries + 3 * keys) * self._weight
        attended = 2 * queries + 2 * keys + (queries + keys if model.qk_norm else 0)
        inputs = (3 if self._compute < self._weight else 1) * model.dim
        return self._tokens * (attended + inputs) * self._compute

    def _saved_by_ffn(self, is_sparse: bool) -> float:
        model, moe, converts = self._model, self._model.moe, self._compute < self._weight
        if not is_sparse or moe is None:
            return self._tokens * ((2 if converts else 1) * model.dim + 4 * (model.ffn or 0)) * self._compute
        _, expected, _ = estimate_activated_width(model)
        _, choices, _ = moe.router.count_experts_per_token(len(moe.routed_widths))
        busy = 1.0 if self._placed is None else self._placed.work
        hidden = (
            2 * busy * expected * self._kept_share()
            + 4 * moe.shared
            + 2 * (moe.hyper.dim if moe.hyper else 0)
        )
        if self._placed is not None:  # rows that came from others and from here
            hidden += model.dim * (self._placed.rows + 1)
        numbers = model.dim * (self._weight + self._compute * converts) + hidden * self._compute
        numbers += 4 * (_EXPERT_NUMBERS * len(moe.routed_widths) + _CHOICE_NUMBERS * choices)
        return self._tokens * numbers

    def _kept_share(self) -> float:
        """Return the share of the choices that experts have room for."""
        moe = self._model.moe
        factor = None if moe is None else moe.router.get_capacity(training=True)
        return 1.0 if factor is None else min(1.0, factor)

    def _copies(self, num_blocks: int) -> float:
        """Return the copies of weights that so many blocks keep: converted, or queries, keys and values as one."""
        num_blocks = min(num_blocks, 1) if self._recomputes else num_blocks
        if self._compute < self._weight:
            return num_blocks * self._computed * self._compute / self._weight
        if self._model.qk_norm:
            return 0.0
        queries, keys = self._count_heads()
        turns = self._config.data.sequence_length * (queries + keys)
        return num_blocks * self._weight * (self._model.dim * (queries + 2 * keys) + turns)

    def _new_gradients(self, is_sparse: bool) -> float:
        """Return the gradients that one operation of a block makes, before they are added to those that are there."""
        model, converted = self._model, self._weight if self._compute < self._weight else 0
        if is_sparse and model.moe:  # of three matrices at once, which are converted one after another
            kept = 1.0 if self._placed is None else self._placed.local_share
            units = 0 if self._held else kept * sum(model.moe.expert_widths)
            return model.dim * units * (3 * self._compute + converted)
        return model.dim * (model.ffn or 0) * (self._compute + converted)

    def _passing(self, is_sparse: bool) -> float:
        """Return what goes back through a block besides, where it is most: in the feed-forward part or in attention."""
        model, tokens, moe = self._model, self._tokens, self._model.moe
        queries, keys = self._count_heads()
        # Gradients of the output, and of queries, keys and values.
        attention = (2 * queries + 2 * keys) * tokens * self._compute
        if not is_sparse or moe is None:
            ffn = 2.0 * tokens * (model.ffn or 0) * self._compute
        else:
            widths = moe.routed_widths
            _, choices, _ = moe.router.count_experts_per_token(len(widths))
            pairs = tokens * choices * self._kept_share()
            # Gradients of pairs, and an expert's rows and hidden units.
            scratch = pairs / len(widths) * (2 * model.dim + 3 * max(widths))
            ffn = (pairs * model.dim + scratch) * self._compute
        return 3 * self._stream() + max(ffn, attention - self._saved_by_ffn(is_sparse))

    def _count_heads(self) -> tuple[int, int]:
        """Return the numbers of all queries and of all keys of a token."""
        model = self._model
        return model.heads * model.head_width, model.num_kv_heads * model.head_width
