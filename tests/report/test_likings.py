"""Who likes a kind of token, a mark or a name is looked up by what is liked."""

from typing import Any

from hmoe.report.likings import (
    is_capitalised,
    is_mark,
    list_kind_likings,
    list_token_likings,
    name_strongest_likings,
)


def make_token(text: str, expert: int, low: float, count: int = 9, **more: Any) -> dict[str, Any]:
    numbers = {"lift": low + 1, "lift_low": low, "lift_high": low + 2}
    return {
        "layer": 0,
        "expert": expert,
        "width": 8 + expert,
        "text": text,
        "count": count,
        **numbers,
        **more,
    }


def test_a_kind_is_liked_by_the_expert_of_which_it_is_surest() -> None:
    lows = {0: 1.5, 1: 2.5, 2: 0.9}
    rows: list[dict[str, Any]] = [
        {"layer": 0, "expert": expert, "width": 8 + expert, "label": "case", "class": name, "share": 0.5,
         "lift": 3.0 - expert, "low": low * scale, "high": 4.0}
        for name, scale in (("Capital", 1), ("digits", 0.1)) for expert, low in lows.items()
    ]  # fmt: skip
    (table,) = list_kind_likings("run", [*rows, rows[0] | {"lift": None, "low": None}])
    assert [(row["kind"], row["expert"], row["low"], row["null"]) for row in table.rows] == [
        ("Capital", 1, 2.5, 1.0)
    ]
    assert (
        "Capital by 9 units in layer 0, 2.0 times as often as chance (2.5 to 4.0)"
        in name_strongest_likings(table)
    )
    assert list_kind_likings("run", rows[3:]) == []
    # Seven pairs are too few, however high their lift.
    counted = [row | {"pairs": 7 if row["expert"] == 1 else 900} for row in rows]
    (table,) = list_kind_likings("run", counted)
    assert [(row["expert"], row["pairs"]) for row in table.rows] == [(0, 900)]
    assert "900 pairs" in name_strongest_likings(table)


def test_marks_and_names_are_in_view_and_all_tokens_in_order() -> None:
    rows = [
        make_token(" said", 1, 2.0),
        make_token('"', 0, 1.5),
        make_token('"', 2, 3.0, lift_null=1.2),
        make_token(" Emma", 1, 2.0),
        make_token("\n", 1, 2.0),
        make_token("Lost", 1, 2.0) | {"lift_low": None},
    ]
    first, every = list_token_likings("run", rows)
    assert [(row["text"], row["expert"], row["null"]) for row in first.rows] == [
        ('"', 2, 1.2),
        ("␣Emma", 1, 1.0),
    ]
    assert [row["text"] for row in every.rows] == ["⏎", '"', "␣Emma", "␣said"]
    assert every.is_folded
    assert not first.is_folded
    assert list(list_token_likings("run", [])) == []
    many = [make_token("." * length, 0, 2.0, length) for length in range(1, 15)]
    assert [row["count"] for row in next(list_token_likings("run", many)).rows] == list(range(14, 4, -1))


def test_marks_and_capitalised_words() -> None:
    assert [text for text in ('"', "␣--", ",", "a", "␣", "⏎", "4", "") if is_mark(text)] == ['"', "␣--", ","]
    words = ("␣Emma", "She", "ED", "␣I", "Ha1", "emma", "Élise", "McKay")
    assert [word for word in words if is_capitalised(word)] == ["␣Emma", "She", "Élise"]
