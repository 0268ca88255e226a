"""One text, token by token: which experts served it, and how much of the model it activated."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hmoe.data.tokenizer import Tokenizer
from hmoe.errors import ConfigError
from hmoe.figures.coloured_text import TextPiece, render_coloured_html, render_layer_bars
from hmoe.model.trace import ExpertsOff, RoutingTrace, trace
from hmoe.model.transformer import Transformer


@dataclass(frozen=True)
class ServingExpert:
    """An expert that served a token.

    Attributes:
        layer: MoE layer.
        expert: its number in the layer.
        width: its hidden units.
        gate: with which its output was weighed.
        probability: that the router gave it.
    """

    layer: int
    expert: int
    width: int
    gate: float
    probability: float


@dataclass(frozen=True)
class ShownToken:
    """A token of a text.

    Attributes:
        index: in the text, from 0.
        token: its id.
        text: of itself, without the tokens around it; "" where only several make a character.
        activated_ratio: share of the hidden units that it activated, mean over layers; None for a dense model.
        nll: its negative log-likelihood in nats; None where nothing comes before it.
        experts: that served it, layer by layer.
    """

    index: int
    token: int
    text: str
    activated_ratio: float | None
    nll: float | None
    experts: tuple[ServingExpert, ...]


@dataclass(frozen=True, repr=False)
class ShownText:
    """A text that a model has read; a notebook shows it in colours, and `print` as a table.

    Attributes:
        trace: of the text's tokens, and of those that a text begins with, which come first.
        tokens: of the text.
        pieces: parts that can be read, coloured by what they activate.
    """

    trace: RoutingTrace
    tokens: tuple[ShownToken, ...]
    pieces: tuple[TextPiece, ...]

    def _repr_html_(self) -> str:
        # Of the text alone: what stands before it is not shown.
        chosen_ZTE = self.trace.chosen_ZTE[:, -len(self.tokens) :]
        ratios = chosen_ZTE.double().mean(1).tolist()
        return render_coloured_html(self.pieces) + render_layer_bars(ratios, self.trace.widths)

    def __str__(self) -> str:
        lines = [f"{'token':>5}  {'activated':>9}  {'nll':>6}  text"]
        for token in self.tokens:
            ratio = "" if token.activated_ratio is None else f"{token.activated_ratio:.1%}"
            nll = "" if token.nll is None else f"{token.nll:.2f}"
            lines.append(f"{token.index:5d}  {ratio:>9}  {nll:>6}  {token.text!r}")
        return "\n".join(lines)

    __repr__ = __str__


def show_text(
    model: Transformer,
    tokenizer: Tokenizer,
    text: str,
    top_p_experts: float | None = None,
    without: ExpertsOff = (),
    begin: Sequence[int] | None = None,
) -> ShownText:
    """Read a text and return it token by token, coloured in a notebook by the hidden units that it activates.

        model, tokenizer = hmoe.open("runs/quickstart")
        hmoe.show(model, tokenizer, "She was not at home.")

    The model reads the text as in evaluation: after the tokens that its texts begin with, or after a separator.

    Args:
        model: a model, with or without MoE layers.
        tokenizer: the model's.
        text: of at least one token.
        top_p_experts: another threshold for the routers of a top-p model, see `hmoe.trace`.
        without: experts that are switched off, see `hmoe.trace`.
        begin: ids that the model's texts begin with; None: those of its tokenizer.

    Raises:
        ConfigError: for a text without tokens, or what `hmoe.trace` refuses.
    """
    (ids,) = tokenizer.encode([text])
    if not ids:
        raise ConfigError("text: is empty; must have at least one token")
    before = list(tokenizer.begin if begin is None else begin) or [tokenizer.separator]
    traced = trace(model, [*before, *ids], top_p_experts, without)
    pairs: list[list[int]] = [[] for _ in traced.tokens_T]
    for pair, place in enumerate(traced.token_N.tolist()):
        pairs[place].append(pair)
    tokens = tuple(
        _describe_token(traced, place, index, pairs[place], tokenizer)
        for index, place in enumerate(range(len(before), len(pairs)))
    )
    return ShownText(traced, tokens, tuple(_join_pieces(tokens, ids, tokenizer)))


def _describe_token(
    traced: RoutingTrace, place: int, index: int, pairs: Sequence[int], tokenizer: Tokenizer
) -> ShownToken:
    """Return token `index` of the text, which stands at `place` of the trace, with the pairs that are its own."""
    token = int(traced.tokens_T[place])
    experts = [
        ServingExpert(
            int(traced.layer_N[pair]),
            int(traced.expert_N[pair]),
            traced.widths[int(traced.expert_N[pair])],
            float(traced.gate_N[pair]),
            float(traced.probs_ZTE[traced.layer_N[pair], place, traced.expert_N[pair]]),
        )
        for pair in pairs
    ]
    whole = sum(traced.widths)
    nll = float(traced.nll_T[place])
    try:
        text = tokenizer.token_bytes(token).decode()
    except UnicodeDecodeError:
        text = ""
    return ShownToken(
        index,
        token,
        text,
        float(traced.width_ZT[:, place].mean()) / whole if whole else None,
        None if math.isnan(nll) else nll,  # nothing comes before it
        tuple(experts),
    )


def _join_pieces(tokens: Sequence[ShownToken], ids: Sequence[int], tokenizer: Tokenizer) -> list[TextPiece]:
    """Return the text in parts that can be read; tokens that make one character are joined."""
    detokenizer, shown, waiting, pieces = tokenizer.detokenizer([]), 0, list[ShownToken](), list[TextPiece]()
    for token, token_id in zip(tokens, ids, strict=True):
        detokenizer.add(token_id)
        waiting.append(token)
        if len(detokenizer.settled) > shown:
            pieces.append(_make_piece(detokenizer.settled[shown:], waiting))
            shown, waiting = len(detokenizer.settled), []
    if len(detokenizer.text) > shown or waiting:
        pieces.append(_make_piece(detokenizer.text[shown:], waiting))
    return pieces


def _make_piece(text: str, tokens: Sequence[ShownToken]) -> TextPiece:
    ratios = [token.activated_ratio for token in tokens if token.activated_ratio is not None]
    details: list[str] = []
    for token in tokens:
        ratio = "" if token.activated_ratio is None else f", {token.activated_ratio:.1%} of the hidden units"
        nll = "" if token.nll is None else f", {token.nll:.2f} nats"
        details.append(f"token {token.index}{ratio}{nll}")
        details += list_layer_lines(token)
    return TextPiece(text, sum(ratios) / len(ratios) if ratios else None, tuple(details))


def list_layer_lines(token: ShownToken) -> list[str]:
    """Return a line for each MoE layer with the experts that served a token, narrow to wide."""
    layers: dict[int, list[ServingExpert]] = {}
    for expert in token.experts:
        layers.setdefault(expert.layer, []).append(expert)
    return [
        f"layer {layer}: "
        + ", ".join(
            f"{e.width:,} units x {e.gate:.2f}" for e in sorted(experts, key=lambda e: (e.width, e.expert))
        )
        for layer, experts in layers.items()
    ]


def list_token_values(shown: ShownText) -> list[dict[str, Any]]:
    """Return the tokens of a text as plain values, for JSON."""
    return [
        {
            **{k: v for k, v in vars(token).items() if k != "experts"},
            "experts": [vars(e) for e in token.experts],
        }
        for token in shown.tokens
    ]
