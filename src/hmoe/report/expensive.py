"""Which text is expensive: activated units by domain and against what tokens are like."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hmoe.figures.inspection_charts import FEATURES, chart_difficulty
from hmoe.figures.inspection_overview import chart_correlations, chart_domains
from hmoe.figures.records import Chart
from hmoe.report.gallery import show_token
from hmoe.report.headline import show_signed
from hmoe.report.inspection_tables import Tables, fold_table, get_overall, list_figures, show_interval
from hmoe.report.pieces import PageColumn, PagePart, PageTable

_CHOSEN = (
    "The most frequent tokens and the rarest that occur 20 times or more, or those that were named, from expensive to "
    "cheap. They have no intervals: small differences may be chance."
)


def describe_difficulty(name: str, tables: Tables) -> PagePart:
    """Return how many units a text activates, by its domain and by what its tokens are like."""
    curves = [
        chart_difficulty(tables.get("difficulty_curves", []), feature, words)
        for feature, words in FEATURES.items()
    ]
    known = [
        row for row in tables.get("difficulty", []) if row["correlation"] is not None and not row["given"]
    ]
    rows = get_overall(known)
    charts: list[Chart | None] = [*curves]
    if tables.get("domains"):
        charts.insert(0, chart_domains(tables["domains"]))
    if rows:
        charts.append(chart_correlations(rows))
    sentences = [
        "How expensive a text is: the share of the hidden units that its tokens activate, mean over layers.",
        *_compare_domains(tables.get("domains", [])),
    ]
    sentences += [_weigh_feature(feature, known) for feature in dict.fromkeys(row["feature"] for row in rows)]
    folded = [
        *fold_table(name, "domains", "By domain of the text", tables),
        *fold_table(
            name, "difficulty", "All correlations, by layer, with intervals and what chance gives", tables
        ),
    ]
    named = _list_chosen_tokens(name, tables)
    return PagePart("Which text is expensive", sentences, list_figures(charts), [*named, *folded])


def _compare_domains(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield which domain costs most and which least, and whether their intervals lie apart."""
    known = sorted(
        (row for row in rows if row["activated_ratio"] is not None), key=lambda row: row["activated_ratio"]
    )
    if len(known) < 2:
        return
    ends = [f"{row['domain']} {row['activated_ratio']:.2%}{_show_span(row)}" for row in (known[-1], known[0])]
    most, least = known[-1], known[0]
    if None in (most["low"], least["high"]):
        verdict = "too few documents to say that they differ"
    else:
        verdict = "their intervals lie apart" if most["low"] > least["high"] else "their intervals overlap"
    yield f"By domain: most {ends[0]}, least {ends[1]}; {verdict}."


def _show_span(row: Mapping[str, Any]) -> str:
    null = row.get("null")
    interval = show_interval(row, "low", "high", ".2%").strip(" ()")
    parts = [*([interval] if interval else []), *([f"chance {null:.2%}"] if null is not None else [])]
    return f" ({'; '.join(parts)})" if parts else ""


def _list_chosen_tokens(name: str, tables: Tables) -> list[PageTable]:
    chosen = sorted(
        get_overall(tables.get("chosen_tokens", [])),
        key=lambda row: row["activated_ratio"] or 0.0,
        reverse=True,
    )
    rows = [
        {"text": show_token(row["text"]), **{key: row[key] for key in ("count", "activated_ratio", "nll")}}
        for row in chosen
    ]
    columns = [
        PageColumn("text", "Token", is_text=True),
        PageColumn("count", "Occurs"),
        PageColumn("activated_ratio", "Activated units", "{:.1%}".format),
        PageColumn("nll", "Loss in nats", "{:.2f}".format),
    ]
    return [PageTable(f"tokens-{name}", _CHOSEN, columns, rows)] if rows else []


def _weigh_feature(feature: str, known: Sequence[Mapping[str, Any]]) -> str:
    """Return the correlations with a feature, over tokens and over types, and in which layers tokens go which way."""
    own = [row for row in known if row["feature"] == feature]
    words = FEATURES.get(feature, feature)
    correlations = "; ".join(
        _weigh_correlation(row) for over in ("tokens", "types") for row in get_overall(own, over=over)
    )
    text = f"{words[0].upper()}{words[1:]}: {correlations}."
    layers = [row for row in own if row["layer"] is not None and row["over"] == "tokens"]
    ways = {
        word: ", ".join(str(row["layer"]) for row in layers if _find_way(row) == way)
        for way, word in ((1, "more"), (-1, "less"))
    }
    parts = [f"{word} than chance in layer {names}" for word, names in ways.items() if names]
    return text + (f" By layer, over tokens: {' and '.join(parts)}." if parts else "")


def _find_way(row: Mapping[str, Any]) -> int:
    """Return 1 for a correlation above what chance gives, -1 for one below, 0 within, unsure or unknown.

    It lies outside the band of chance, and its interval on one side of the band's middle.
    """
    low, high = row.get("null_low"), row.get("null_high")
    if low is None or high is None or row["low"] is None or row["high"] is None:
        return 0
    middle = (low + high) / 2
    is_above = row["correlation"] > high and row["low"] > middle
    return int(is_above) - int(row["correlation"] < low and row["high"] < middle)


def _weigh_correlation(row: Mapping[str, Any]) -> str:
    """Return a correlation in words, over what it is, and whether it is more than chance gives."""
    count = f"{row['count']:,} " if row.get("count") else ""
    noun = "token types" if row["over"] == "types" else "tokens"
    interval = show_interval(row, "low", "high", "+.2f")
    text = f"over {count}{noun} rank correlation {show_signed(row['correlation'], 2)}{interval}"
    chance = show_interval(row, "null_low", "null_high", "+.2f")
    if not chance:
        return text
    verdict = {0: "not shown to be other than what", 1: "more than", -1: "less than"}[_find_way(row)]
    return f"{text}, {verdict} chance gives{chance}"
