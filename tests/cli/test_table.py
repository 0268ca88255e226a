"""Tables: one record, five forms."""

import csv
import io
import json

import pytest

from hmoe.cli.table import Column, Table, choose_form, render_table
from hmoe.errors import ConfigError

TABLE = Table(
    [
        Column("name", "run", is_text=True),
        Column("loss", "loss", "{:.2f}".format),
        Column("empty", "nothing"),
    ],
    [
        {"name": "a_b|c", "loss": 1.234567, "empty": None, "more": [1]},
        {"name": "ü", "loss": None, "empty": None},
    ],
    ["half of 100%."],
)


def test_text_is_aligned_and_leaves_empty_columns_out() -> None:
    assert render_table(TABLE, width=80) == "run    loss\na_b|c  1.23\nü\n\nhalf of 100%.\n"


@pytest.mark.parametrize("width", [24, 40, 80, 200])
def test_text_fits_the_width_and_says_everything(width: int) -> None:
    columns = [Column("name", "run", is_text=True), *(Column(f"c{i}", f"column {i}") for i in range(9))]
    rows = [{"name": "a"} | {f"c{i}": 1000 + i for i in range(9)}]
    text = render_table(Table(columns, rows), width=width)
    assert max(map(len, text.splitlines())) <= width
    assert all(f"1,00{i}" in text for i in range(9))
    assert text.count("run") == len(text.split("\n\n"))


def test_options_among_the_notes_can_be_copied() -> None:
    note = (
        "try --override unequal-topk:model.moe.load_balance=0.01 --rates equal-topk=0.006,unequal-topk=0.006"
    )
    for width in range(20, 90):
        text = render_table(Table(TABLE.columns, TABLE.rows, [note]), width=width)
        assert set(note.split()) <= set(text.split())


def test_exact_forms_hold_exact_values() -> None:
    assert json.loads(render_table(TABLE, "json")) == {"rows": TABLE.rows, "notes": ["half of 100%."]}
    rows = list(csv.DictReader(io.StringIO(render_table(TABLE, "csv"))))
    assert rows[0] == {"name": "a_b|c", "loss": "1.234567", "empty": ""}


def test_markdown_and_latex_escape_what_they_read() -> None:
    assert "| a\\|b |" not in render_table(TABLE, "markdown")
    assert "| a_b\\|c | 1.23 |" in render_table(TABLE, "markdown")
    latex = render_table(TABLE, "latex")
    assert r"a\_b|c & 1.23 \\" in latex
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 1


def test_one_form_at_a_time() -> None:
    assert choose_form(json=False, csv=True) == "csv"
    assert choose_form(json=False, csv=False) == "text"
    with pytest.raises(ConfigError, match="--json and --csv: choose one form"):
        choose_form(json=True, csv=True)


def test_columns_stand_in_the_forms_they_are_for() -> None:
    table = Table([Column("a", "A"), Column("b", "B", forms=("csv",))], [{"a": 1, "b": 2}])
    assert "B" not in render_table(table, width=80)
    assert render_table(table, "csv") == "a,b\n1,2\n"
    with pytest.raises(ConfigError, match="form = html: must be one of text"):
        render_table(table, "html")
