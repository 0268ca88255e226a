"""What a training step needs of a CPU's memory at the moment when it needs most. No torch.

    forward pass | loss | backward pass: last block ... first block | update

Saved activations are largest at the loss, gradients at the end of the backward pass: a step needs the most at one of
the moments between them, and what is told by part is what is there then.
"""

from hmoe.config.counts import count_parameters, estimate_activated_width
from hmoe.config.run import RunConfig
from hmoe.specs.chunk import count_chunk_tokens

Parts = dict[str, float]
# Of an MoE router per token and expert, and per token and choice: scores, decisions, places, gates.
_EXPERT_NUMBERS, _CHOICE_NUMBERS = 2.5, 11


def estimate_cpu_memory(config: RunConfig, num_processes: int) -> dict[str, int]:
    """Return the bytes of a training step of each process, by part; see `estimate_memory_by_part`.

    Tensors, at the moment when they are most; a uniform router. Measured by benchmarks/planned_memory.py.
    """
    step = _Step(config, num_processes)
    moments = [step.at_loss(), step.in_last_block(), step.in_first_block(), step.at_update()]
    if num_processes > 1:
        moments.append(step.in_block_before())
    parts = max(moments, key=lambda moment: sum(moment.values()))
    return {name: round(value) for name, value in parts.items()}


class _Step:
    """Sizes in bytes from which the moments of a step are put together."""

    def __init__(self, config: RunConfig, num_processes: int) -> None:
        model, train = config.model, config.train
        self._model, self._config = model, config
        self._weight = 8 if train.precision == "float64" else 4
        self._compute = 2 if train.precision == "bfloat16" else self._weight
        self._tokens = config.data.batch_tokens // config.data.num_micro_batches
        self._recomputes = train.recomputes_blocks
        parts = count_parameters(model)
        self._total = self._weight * sum(parts.values())
        self._block = self._weight * (
            (sum(parts.values()) - parts["embedding"] - parts["head"]) // model.layers
        )
        self._head = self._weight * model.vocab * model.dim
        self._layers = [layer in model.moe_layers for layer in range(model.layers)]
        self._share(num_processes)

    def _share(self, num_processes: int) -> None:
        """Note what a process keeps and gathers, and its gradients before a step's last backward pass."""
        parallel, parts = self._config.parallel, self._config.data.num_micro_batches
        adds_up, self._gathers_each_time = parts > num_processes, parallel.sharding == "zero3"
        self._is_shared, self._is_exact = num_processes > 1, parallel.exact
        self._group = 1 if parallel.sharding == "ddp" else num_processes // parallel.replicas
        self._own = self._total / self._group
        self._outside = self._total - self._model.layers * self._block
        self._before = self._own if adds_up else 0.0
        if self._is_exact:  # sums over 1, 2, 4, ... micro-batches
            self._before = self._own * (parts - num_processes).bit_count()
        elif self._is_shared and adds_up and not self._gathers_each_time:
            self._before = self._total  # whole until the last micro-batch

    def at_loss(self) -> Parts:
        """Logits of a chunk with their derivatives, and the gradients of the head and of what it read."""
        model, weight, compute = self._model, self._weight, self._compute
        chunk = min(self._tokens, count_chunk_tokens(model.vocab, "cpu"))
        converted = 2 * compute * model.vocab * model.dim if compute < weight else 0
        logits = 2 * chunk * model.vocab * weight
        return self._put_together(
            gathered=self._gather(0),
            gradients=self._before,
            activations=self._saved_by_all(),
            loss=logits + self._head + converted + 2 * self._stream(),
            copies=self._copies(len(self._layers)),
        )

    def in_last_block(self) -> Parts:
        """The activations of all blocks are still there, and the last one's gradients are made."""
        is_sparse = self._layers[-1]
        return self._put_together(
            gathered=self._gather(0),
            # Those of the head: of a step's only micro-batch they stay, with several they have been added.
            gradients=self._before or self._head,
            activations=self._saved_by_all() + self._passing(is_sparse),
            loss=self._stream(),
            copies=self._copies(len(self._layers)) + self._new_gradients(is_sparse),
        )

    def in_block_before(self) -> Parts:
        """Of several processes: gradients of the last block are on their way to those who keep their rows."""
        last, is_sparse = self._layers[-1], self._layers[max(len(self._layers) - 2, 0)]
        freed = self._stream() if self._recomputes else self._saved(last)
        return self._put_together(
            gathered=self._gather(1),
            gradients=(self._before or self._head) + self._on_the_way(),
            activations=self._saved_by_all() - freed + self._passing(is_sparse),
            loss=self._stream(),
            copies=self._copies(len(self._layers) - 1) + self._new_gradients(is_sparse),
        )

    def in_first_block(self) -> Parts:
        """All gradients are there, and one block's activations."""
        is_sparse = self._layers[0]
        return self._put_together(
            gathered=self._gather(len(self._layers) - 1),
            gradients=self._own + self._on_the_way(),
            activations=self._saved(is_sparse) + self._passing(is_sparse),
            loss=0.0,
            copies=self._copies(1) + self._new_gradients(is_sparse) * (self._before > 0),
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
        }

    def _on_the_way(self) -> float:
        """Return a block's gradients on their way to the processes that keep their rows, and those rows."""
        # In exact mode they are received one by one.
        return self._block * (1 + self._is_exact + 1 / self._group) * self._is_shared

    def _gather(self, num_done: int) -> float:
        """Return the weights that are gathered besides, when the backward pass has left so many blocks behind."""
        if not self._is_shared:
            return 0.0
        blocks = len(self._layers) - num_done
        return self._outside + self._block * (min(blocks, 2) if self._gathers_each_time else blocks)

    def _stream(self) -> float:
        """Return the bytes of the residual stream of a micro-batch."""
        return self._tokens * self._model.dim * self._weight

    def _saved_by_all(self) -> float:
        """Return what is kept of all blocks until the backward pass, or inputs of blocks and one that is recomputed."""
        if self._recomputes:
            return self._model.layers * self._stream() + max(map(self._saved, set(self._layers)))
        return sum(map(self._saved, self._layers))

    def _saved(self, is_sparse: bool) -> float:
        """Return what a block keeps for its backward pass."""
        model, weight, compute = self._model, self._weight, self._compute
        queries, keys = model.heads * model.head_width, model.num_kv_heads * model.head_width
        tokens, converts = self._tokens, compute < weight
        numbers = 2.0 * model.dim * weight  # what both norms read
        if not converts and not model.qk_norm:  # one product of queries, keys and values, then one rotation
            numbers += (model.dim + 3 * queries + 3 * keys) * weight
        else:
            attended = 2 * queries + 2 * keys + (queries + keys if model.qk_norm else 0)
            numbers += (attended + (3 if converts else 1) * model.dim) * compute
        if not is_sparse:
            numbers += ((2 if converts else 1) * model.dim + 4 * (model.ffn or 0)) * compute
            return tokens * numbers
        moe = model.moe
        assert moe is not None
        _, expected, _ = estimate_activated_width(model)
        _, choices, _ = moe.router.count_experts_per_token(len(moe.routed_widths))
        hidden = 2 * expected + 4 * moe.shared + 2 * (moe.hyper.dim if moe.hyper else 0)
        numbers += model.dim * (weight + compute * converts) + hidden * compute
        numbers += 4 * (_EXPERT_NUMBERS * len(moe.routed_widths) + _CHOICE_NUMBERS * choices)
        return tokens * numbers

    def _copies(self, num_blocks: int) -> float:
        """Return the copies of weights that so many blocks keep: converted, or queries, keys and values as one."""
        num_blocks = 1 if self._recomputes else num_blocks
        model = self._model
        if self._compute < self._weight:
            return num_blocks * self._block * self._compute / self._weight
        if model.qk_norm:
            return 0.0
        queries, keys = model.heads * model.head_width, model.num_kv_heads * model.head_width
        turns = self._config.data.sequence_length * (queries + keys)
        return num_blocks * self._weight * (model.dim * (queries + 2 * keys) + turns)

    def _new_gradients(self, is_sparse: bool) -> float:
        """Return the gradients that one operation of a block makes, before they are added to those that are there."""
        model = self._model
        units = sum(model.moe.expert_widths) if is_sparse and model.moe else (model.ffn or 0) / 3
        made = self._compute + (self._weight if self._compute < self._weight else 0)
        return 3 * model.dim * units * made

    def _passing(self, is_sparse: bool) -> float:
        """Return what goes back through a block besides: gradients of the stream, of pairs, and of hidden units."""
        model, tokens = self._model, self._tokens
        if not is_sparse or model.moe is None:
            return 3 * self._stream() + 2 * tokens * (model.ffn or 0) * self._compute
        widths = model.moe.routed_widths
        _, choices, _ = model.moe.router.count_experts_per_token(len(widths))
        rows = tokens * choices / len(widths)  # of one expert
        scratch = rows * (2 * model.dim + 3 * max(widths))
        return 3 * self._stream() + (tokens * choices * model.dim + scratch) * self._compute
