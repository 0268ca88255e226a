"""Which expert likes a kind of token, a mark or a name most: tables that are looked up by what is liked."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hmoe.figures.inspection_kinds import FEWEST_PAIRS, describe_liking, get_null, is_liked_surely
from hmoe.report.gallery import show_token
from hmoe.report.pieces import PageColumn, PageTable

_Rows = Sequence[Mapping[str, Any]]
_MOST_NAMED = 10  # marks, and as many words with a capital, in view
_NUM_SHOWN = 500  # of all tokens
_NUMBERS = [
    PageColumn("layer", "MoE layer"),
    PageColumn("width", "Hidden units of the expert"),
    PageColumn("lift", "Times as often", "{:.2f}".format),
    PageColumn("low", "From", "{:.2f}".format),
    PageColumn("high", "To", "{:.2f}".format),
    PageColumn("null", "By chance", "{:.2f}".format),
]


def list_kind_likings(name: str, profiles: _Rows) -> list[PageTable]:
    """Return a table of the expert that likes each kind of token most, on enough pairs; [] where none surely does."""
    best: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in profiles:
        key = (row["label"], row["class"])
        if is_liked_surely(row) and (
            key not in best or row["low"] / get_null(row) > best[key]["low"] / get_null(best[key])
        ):
            best[key] = row
    rows = [
        {"kind": kind, **_take(row, "layer", "expert", "width", "share", "lift", "low", "high"),
         "null": get_null(row), "p": row.get("p"), "pairs": row.get("pairs")}
        for (_, kind), row in best.items()
    ]  # fmt: skip
    columns = [
        PageColumn("kind", "Kind of token", is_text=True),
        *_NUMBERS,
        PageColumn("share", "Share of the expert's pairs", "{:.1%}".format),
        PageColumn("pairs", "Pairs"),
        PageColumn("p", "p (Holm)", "{:.3f}".format),
        PageColumn("expert", "expert", is_exact=True),
    ]
    caption = (
        "Each kind of token that is shown to be liked (p up to 5% after Holm's correction over all experts, layers and "
        f"classes, on {FEWEST_PAIRS} pairs or more), and the expert whose interval begins highest above chance. Each "
        "interval is for itself."
    )
    return [PageTable(f"kinds-{name}", caption, columns, rows)] if rows else []


def name_strongest_likings(table: PageTable) -> str:
    """Return the three kinds of tokens that an expert likes most, in a sentence."""
    rows = sorted(table.rows, key=lambda row: -row["low"])[:3]
    named = [
        f"{row['kind']} by {row['width']:,} units in layer {row['layer']}, {describe_liking(row)}"
        for row in rows
    ]
    return (
        f"Farthest above chance, on {FEWEST_PAIRS} pairs or more: {'; '.join(named)}. "
        "Tables below the pictures name every kind, marks and names."
    )


def list_token_likings(name: str, top_tokens: _Rows) -> Iterator[PageTable]:
    """Yield a table of marks and capitalised words, and one of all tokens, each with the expert that likes it most."""
    best: dict[str, Mapping[str, Any]] = {}
    for row in top_tokens:
        text = row["text"]
        if row["lift_low"] is not None and (
            text not in best
            or row["lift_low"] / get_null(row) > best[text]["lift_low"] / get_null(best[text])
        ):
            best[text] = row
    rows = [
        {
            "text": show_token(text),
            **_take(row, "count", "layer", "expert", "width", "lift"),
            "pairs": row.get("pairs"),
            **{"low": row["lift_low"], "high": row["lift_high"], "null": get_null(row)},
        }
        for text, row in sorted(best.items(), key=lambda item: (item[0].strip().lower(), item[0]))
    ]
    columns = [
        PageColumn("text", "Token", is_text=True),
        PageColumn("count", "Occurs"),
        PageColumn("pairs", "Of these with the expert"),
        *_NUMBERS,
        PageColumn("expert", "expert", is_exact=True),
    ]
    marks = _choose_frequent([row for row in rows if is_mark(row["text"])])
    words = _choose_frequent([row for row in rows if is_capitalised(row["text"])])
    if marks or words:
        caption = (
            "Frequent marks and capitalised words (names too), and the expert whose interval begins highest above "
            "chance."
        )
        yield PageTable(f"marks-and-names-{name}", caption, columns, [*marks, *words])
    if rows:
        caption = "All tokens that some expert likes, from A to Z"
        yield PageTable(f"liked-tokens-{name}", caption, columns, rows, _NUM_SHOWN, is_folded=True)


def is_mark(text: str) -> bool:
    """Return whether a token is punctuation alone; spaces are shown as ␣."""
    bare = text.strip("␣⏎⇥␍")
    return bool(bare) and not any(char.isalnum() for char in bare)


def is_capitalised(text: str) -> bool:
    """Return whether a token is a word that begins with a capital, and goes on without."""
    bare = text.strip("␣")
    return len(bare) > 2 and bare.isalpha() and bare[:1].isupper() and bare[1:].islower()


def _choose_frequent(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: -row["count"])[:_MOST_NAMED]


def _take(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: row[name] for name in names}
