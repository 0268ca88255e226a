"""Cards of experts, narrow to wide: the tokens that each likes more than others do, and where it was chosen."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hmoe.figures.svg import show_controls
from hmoe.report.inputs import RunRecord
from hmoe.report.learning import thin_rows
from hmoe.report.pieces import ExpertCard, PagePart, make_table

MOST_CARDS = 48
_MOST_TOKENS, _MOST_CONTEXTS = 12, 4
_Rows = Sequence[Mapping[str, Any]]
_SPACES = {"\n": "⏎", "\t": "⇥", "\r": "␍", " ": "␣"}


def list_galleries(record: RunRecord) -> Iterator[PagePart]:
    """Yield a part for each MoE layer that is shown, with a card for each of its experts."""
    assert record.inspection is not None
    tables = record.inspection["tables"]
    experts, tokens = tables.get("experts", []), tables.get("top_tokens", [])
    if not experts or not (tokens or record.positions):
        return
    layers = sorted({row["layer"] for row in experts if row["layer"] is not None})
    num_experts = len(experts) // max(len(layers), 1)
    shown = thin_rows(layers, max(2, MOST_CARDS // max(num_experts, 1)))
    for layer in shown:
        own = sorted(
            (row for row in experts if row["layer"] == layer), key=lambda row: (row["width"], row["expert"])
        )
        last = max(len(own) - 1, 1)
        cards = [
            _make_card(row, place / last, _select(tokens, row), _select(record.positions, row))
            for place, row in enumerate(own)
        ]
        sentences = [_explain_gallery(len(shown), len(layers))] if layer == shown[0] else []
        named = make_table(
            f"top-tokens-{record.name}-layer-{layer}",
            f"Layer {layer}: tokens by the lower end of their lift.",
            [
                {key: value for key, value in row.items() if key != "layer"}
                for row in tokens
                if row["layer"] == layer
            ],
            40,
            is_folded=True,
        )
        yield PagePart(
            f"Layer {layer}: who likes what", sentences, cards=cards, tables=[named] if named.rows else []
        )


def _explain_gallery(num_shown: int, num_layers: int) -> str:
    text = (
        "Tokens that reach an expert more often than tokens do on the whole, at a false discovery rate of 5%, "
        "those first of which it is surest; the number is how many times as often. "
        "Contexts are a random sample of what an expert served, whatever it likes."
    )
    return text if num_shown == num_layers else f"{text} {num_shown} of {num_layers} layers are shown."


def _select(rows: _Rows, expert: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["layer"] == expert["layer"] and row["expert"] == expert["expert"]]


def _make_card(expert: Mapping[str, Any], place: float, tokens: _Rows, positions: _Rows) -> ExpertCard:
    width, ratio, state = expert["width"], expert.get("ratio"), expert.get("state")
    unit = "hidden unit" if width == 1 else "hidden units"
    text = f"{width:,} {unit}"
    if ratio is not None:
        text += f"; serves {ratio:.1%} of the tokens"
    if state:
        text += f"; {state}"
    if not tokens:
        text += "; no token stands out"
    return ExpertCard(
        title=f"Expert {expert['expert']}",
        width=width,
        place=place,
        text=f"{text}.",
        tokens=[(show_token(row["text"]), f"×{row['lift']:.1f}") for row in tokens[:_MOST_TOKENS]],
        contexts=[
            (show_controls(row["left"]), show_token(row["text"]), show_controls(row["right"]))
            for row in positions[:_MOST_CONTEXTS]
        ],
    )


def show_token(text: str) -> str:
    """Return a token with marks in place of its spaces, so that they are seen."""
    shown = "".join(_SPACES.get(character, character) for character in text)
    return show_controls(shown) if shown else "∅"
