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
_STATES = {
    "dead": "dead: no token reached it",
    "rare": "rare: less than a hundredth of what chance gives",
    "unseen": "unseen: no token reached it, on too little text to call it dead",
}
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
        "Tokens that reach an expert more often than tokens do on the whole; of those listed about 5% may be there by "
        "chance (false discovery rate). First stand those whose interval begins highest above chance. 590 of 600 (97% "
        "to 99%): it served so many of the token's occurrences, with the 95% interval of that share; chance is the "
        "share of all tokens that it serves, where nothing else stands. \u00d72 stands for twice as often as chance. "
        f"In context stand up to {_MOST_CONTEXTS} tokens, evenly spaced, of at most 16 that were drawn at random from "
        "all that an expert served, whatever it likes."
    )
    return text if num_shown == num_layers else f"{text} {num_shown} of {num_layers} layers are shown."


def _select(rows: _Rows, expert: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["layer"] == expert["layer"] and row["expert"] == expert["expert"]]


def _make_card(expert: Mapping[str, Any], place: float, tokens: _Rows, positions: _Rows) -> ExpertCard:
    width, ratio, state = expert["width"], expert.get("ratio"), expert.get("state")
    unit = "hidden unit" if width == 1 else "hidden units"
    text = ""
    if ratio is not None:
        text += f"; serves {ratio:.1%} of the tokens{show_chances(expert, 'ratio')}"
    if expert.get("compute_share_null") is not None and expert.get("compute_share") is not None:
        text += f"; does {expert['compute_share']:.1%} of the work{show_chances(expert, 'compute_share')}"
    if state:
        text += f"; {_STATES.get(state, state)}"
    if not tokens:
        text += "; no token stands out"
    return ExpertCard(
        title=f"{width:,} {unit} (expert {expert['expert']})",
        width=width,
        place=place,
        text=f"{text[2:3].upper()}{text[3:]}.",
        tokens=[(show_token(row["text"]), _show_lift(row)) for row in tokens[:_MOST_TOKENS]],
        contexts=[
            (show_controls(row["left"]), show_token(row["text"]), show_controls(row["right"]))
            for row in thin_rows(positions, _MOST_CONTEXTS)
        ],
    )


def show_chances(row: Mapping[str, Any], name: str) -> str:
    """Return the interval of a share and what it is by chance, in brackets; "" where neither is known."""
    low, high, null = (row.get(f"{name}_{end}") for end in ("low", "high", "null"))
    parts = [f"{low:.1%} to {high:.1%}"] if low is not None and high is not None else []
    parts += [f"chance {null:.1%}"] if null is not None else []
    return f" ({'; '.join(parts)})" if parts else ""


def _show_lift(row: Mapping[str, Any]) -> str:
    """Return how many times as often, with the interval, and what chance gives where it is not 1."""
    low, high, null = row.get("lift_low"), row.get("lift_high"), row.get("lift_null")
    if row.get("pairs"):
        return _show_part(row)
    text = f"×{row['lift']:.1f}"
    text += f" ({low:.1f} to {high:.1f})" if low is not None and high is not None else ""
    return text + (f", chance {null:.1f}" if null is not None and abs(null - 1) >= 0.05 else "")


def _show_part(row: Mapping[str, Any]) -> str:
    """Return how many of a token's occurrences an expert served, with the interval of that share."""
    unit = row["pairs"] / row["count"] / row["lift"]  # the share of a token that lifts are told by
    low, high, null = row["lift_low"], row["lift_high"], row.get("lift_null")
    text = f"{row['pairs']:,} of {row['count']:,}"
    if low is not None and high is not None:
        text += f" ({min(unit * low, 1):.0%} to {min(unit * high, 1):.0%})"
    is_other = null is not None and abs(null - 1) >= 0.05
    return text + (f", chance {unit * null:.0%}" if is_other and null is not None else "")


def show_token(text: str) -> str:
    """Return a token with marks in place of its spaces, so that they are seen."""
    shown = "".join(_SPACES.get(character, character) for character in text)
    return show_controls(shown) if shown else "∅"
