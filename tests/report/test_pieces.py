"""Tables in view and in CSV."""

import csv
import io
from urllib.parse import unquote

from hmoe.report.pieces import PageColumn, PageTable, make_table, show_value


def test_a_csv_has_all_rows_exactly_and_the_view_some() -> None:
    rows = [{"text": 'a,"b"\n#é%', "value": 1 / 3, "none": None}, {"text": "c", "value": None, "none": None}]
    table = PageTable("t", "Caption", [PageColumn("text", "Text"), PageColumn("value", "V"), PageColumn("none", "N")],
                      rows, num_shown=1)  # fmt: skip
    assert [column.name for column in table.shown_columns] == ["text", "value"]
    assert table.cells == [['a,"b"\n#é%', "0.3333"]]
    scheme, _, content = table.link.partition(",")
    assert scheme == "data:text/csv;charset=utf-8"
    assert not set('"<>#& ') & set(content)
    read = list(csv.reader(io.StringIO(unquote(content))))
    assert read == [["text", "value", "none"], ['a,"b"\n#é%', str(1 / 3), ""], ["c", "", ""]]


def test_values_as_people_read_them() -> None:
    values = [show_value(value) for value in (True, 12345, 0.123456, 123456.7, "x")]
    assert values == ["yes", "12,345", "0.1235", "123,457", "x"]
    assert [column.is_text for column in make_table("t", "", [{"a": 1, "b": "x"}]).columns] == [False, True]
