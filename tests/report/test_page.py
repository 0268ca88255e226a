"""The page as text: whole, escaped, alone, and made of files without torch. tests/browser reads it in a browser."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hmoe.cli import inspection_lines
from hmoe.errors import ConfigError
from hmoe.report.expensive import _find_way
from hmoe.report.inputs import read_report_inputs
from hmoe.report.learning import smooth_points, thin_rows
from hmoe.report.page import check_target, list_sections, render_page, write_page
from hmoe.report.pieces import PageSection
from tests.report.inspection_example import write_inspection
from tests.report.run_example import EQUAL, HOSTILE, UNEQUAL, write_run


class Outline(HTMLParser):
    """Collects headings, ids, scripts and addresses of a page, and checks that its tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.headings: list[int] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src", "action", "data")]
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="session")
def outline(page: str) -> Outline:
    parser = Outline()
    parser.feed(page)
    return parser


def test_headings_are_in_order_ids_differ_and_nothing_comes_from_elsewhere(outline: Outline) -> None:
    assert outline.open == []
    assert outline.headings[0] == 1
    assert outline.headings.count(1) == 1
    pairs = zip(outline.headings, outline.headings[1:], strict=False)
    assert all(after <= before + 1 for before, after in pairs)
    assert len(set(outline.ids)) == len(outline.ids)
    assert all(address.startswith(("#", "data:")) for address in outline.addresses)
    assert (
        outline.tags.count("svg") == outline.tags.count("figure") - 1 > 15
    )  # one figure is what a model wrote
    assert outline.tags.count("caption") == outline.tags.count("table")


def test_texts_of_runs_are_escaped(page: str, outline: Outline) -> None:
    assert outline.tags.count("script") == 1
    assert "img" not in outline.tags
    assert "<title>A &lt;b&gt;title&lt;/b&gt;</title>" in page
    assert HOSTILE not in page
    assert "&lt;script&gt;document.title" in page
    assert "&lt;time&gt;" in page


def test_sections_answer_in_order_and_an_older_inspection_says_so(example: Path) -> None:
    sections = list_sections(read_report_inputs([str(example)]), ["hmoe train a"])
    assert [section.name for section in sections] == [
        "results", "learning", "training", "inside-1", "look-inside", "samples", "recipes", "notes", "words",
    ]  # fmt: skip
    inside = sections[3]
    assert "looked into at step 30, not at its last one, 40" in inside.lead
    assert "hmoe inspect" in inside.lead
    assert [part.title for part in inside.parts] == [
        "Who works: narrow experts or wide ones", "Which text is expensive",
        "Who reads what: kinds of tokens, marks, names", "Who is like whom", "What each is worth",
        "Which tasks are expensive", "Layer 0: who likes what", "Layer 1: who likes what",
    ]  # fmt: skip
    assert find_sentence(inside, "Not seen, on too little text") == (
        "Not seen, on too little text to call them dead: 8 units in layer 1."
    )
    assert find_sentence(inside, "The narrowest expert, of 8 units") == (
        "The narrowest expert, of 8 units, took 25.0% of the token-expert pairs (20.0% to 30.0%; chance 25.0%) "
        "and 10.0% of the work (9.0% to 11.0%; chance 12.0%)."
    )
    assert "most code <i> 24.00% (chance 25.00%)" in find_sentence(inside, "By domain")
    assert find_sentence(inside, "By domain").endswith("too few documents to say that they differ.")
    assert find_sentence(inside, "Idle experts") == "Idle experts: 32 units in layer 0 (dead)."
    assert "8 and 16 units in layer 0" in find_sentence(inside, "Another question is what experts compute")
    card = inside.parts[-1].cards[1]
    assert (card.width, len(card.tokens), len(card.contexts)) == (16, 5, 3)
    assert inside.parts[-1].cards[0].text.endswith("o token stands out.")
    assert card.title == "16 hidden units (expert 1)"


def test_cards_tell_intervals_chance_and_states_in_words(example: Path) -> None:
    parts = list_sections(read_report_inputs([str(example)]))[3].parts
    first, second = parts[-1].cards[:2]
    assert "unseen: no token reached it, on too little text to call it dead" in first.text
    assert "; chance 50.0%); does " in second.text
    assert "of the work (9.0% to 11.0%; chance 20.0%)" in second.text
    assert second.tokens[0][1] == "×4.0 (3.0 to 5.0), chance 1.3"


def test_an_older_inspection_without_these_numbers_is_told_without_them(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", UNEQUAL)
    file = write_inspection(run, [8, 16, 24, 32], 2, 40) / "inspection.json"
    record = json.loads(file.read_text())
    newer = re.compile(r"lift_null|(compute|token)_share_(low|high|null)")
    tables = record["tables"]
    for name, rows in tables.items():
        tables[name] = [
            {key: value for key, value in row.items() if not newer.fullmatch(key)}
            | ({"state": ""} if name == "experts" else {})
            for row in rows
        ]
    tables["domains"] = [{k: v for k, v in row.items() if k != "null"} for row in tables["domains"]]
    file.write_text(json.dumps(record))
    inputs = read_report_inputs([str(run)])
    inside = next(section for section in list_sections(inputs) if section.name == "inside-1")
    assert find_sentence(inside, "The narrowest").endswith(
        "25.0% of the token-expert pairs and 10.0% of the work."
    )
    assert "of the work" not in inside.parts[-1].cards[1].text
    assert inside.parts[-1].cards[1].tokens[0][1] == "×4.0 (3.0 to 5.0)"
    assert "chance" not in find_sentence(inside, "By domain")
    render_page(inputs)


def test_worth_and_correlations_are_told_with_what_they_rest_on(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", UNEQUAL)
    file = write_inspection(run, [8, 16, 24, 32], 2, 40) / "inspection.json"
    record = json.loads(file.read_text())
    tables = record["tables"]
    for row in tables["worth"]:
        row |= {"difference": 0.1, "p": 0.01 if row["expert"] == 0 else 0.2}
    for row in tables["difficulty"]:
        row["correlation"] = {None: 0.3, 0: -0.3, 1: 0.3}[row["layer"]] if row["over"] == "tokens" else 0.01
        row |= {"low": row["correlation"] - 0.1, "high": row["correlation"] + 0.1}
    for row in tables["top_tokens"]:
        row |= {"pairs": 40, "count": 50, "lift": 2.0, "lift_low": 1.5, "lift_high": 9.0, "lift_null": 1.0}
    for row in tables["experts"]:
        row |= {"state": "", "ratio": 0.2 + row["expert"] / 10}
    file.write_text(json.dumps(record))
    inside = next(s for s in list_sections(read_report_inputs([str(run)])) if s.name == "inside-1")
    assert find_sentence(inside, "Shown to be worth something: 2 of 8 experts")
    told = find_sentence(inside, "Length of the token in bytes")
    assert "120 tokens rank correlation +0.30 (+0.20 to +0.40), more than chance gives" in told
    assert (
        "120 token types rank correlation +0.01 (−0.09 to +0.11), not shown to be other than what chance gives"
        in told
    )
    assert told.endswith("more than chance in layer 1 and less than chance in layer 0.")
    assert inside.parts[-1].cards[1].tokens[0][1] == "40 of 50 (60% to 100%)"
    assert find_sentence(inside, "No expert of any layer is dead or idle: the least used, 8 units in layer 0")
    assert "An older hmoe" in inside.lead


@pytest.mark.parametrize(
    ("correlation", "low", "high", "null", "way"),
    [
        (0.1, 0.05, 0.15, (-0.05, 0.05), 1),
        (-0.1, -0.15, -0.05, (-0.05, 0.05), -1),
        (0.1, 0.05, 0.15, (0.2, 0.4), -1),  # difficult tokens have more experts, and chance lies beside 0
        (0.5, 0.45, 0.55, (0.2, 0.4), 1),
        (0.1, -0.2, 0.4, (-0.05, 0.05), 0),
        (0.3, 0.25, 0.35, (0.2, 0.4), 0),
        (0.1, None, None, (-0.05, 0.05), 0),
    ],
)
def test_more_than_chance_is_told_of_the_side_of_its_band(
    correlation: float, low: float | None, high: float | None, null: tuple[float, float], way: int
) -> None:
    row = {"correlation": correlation, "low": low, "high": high, "null_low": null[0], "null_high": null[1]}
    assert _find_way(row) == way
    assert inspection_lines._is_beyond_null(row) == (None if low is None else way != 0)


def find_sentence(section: PageSection, start: str) -> str:
    return next(text for part in section.parts for text in part.sentences if text.startswith(start))


def test_a_run_nobody_looked_into_says_how(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", UNEQUAL)
    sections = {section.name: section for section in list_sections(read_report_inputs([str(run)]))}
    assert sections["look-inside"].parts[0].commands == [f"hmoe inspect {run}"]
    assert "samples" not in sections


def test_only_keys_that_differ_are_told(tmp_path: Path) -> None:
    write_run(tmp_path / "a", UNEQUAL)
    write_run(tmp_path / "b", EQUAL)
    sections = list_sections(read_report_inputs([str(tmp_path)]))
    table = next(section for section in sections if section.name == "recipes").parts[0].tables[0]
    assert [row["key"] for row in table.rows] == ["model.moe.parameter_penalty", "model.moe.widths"]


def test_a_page_replaces_a_page_and_nothing_else(tmp_path: Path, page: str) -> None:
    file = tmp_path / "page.html"
    assert write_page(file, page) == file.stat().st_size < 3_000_000
    assert write_page(file, page + "\n") == file.stat().st_size
    file.write_text("<!doctype html><html>mine")
    with pytest.raises(ConfigError, match="exists and is no page of this verb"):
        write_page(file, page)
    assert file.read_text().endswith("mine")
    with pytest.raises(ConfigError, match="is a folder"):
        check_target(tmp_path)
    with pytest.raises(ConfigError, match="there is no folder"):
        check_target(tmp_path / "no" / "page.html")


def test_torch_is_not_imported_and_the_same_files_give_the_same_page(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a", EQUAL)
    code = (
        "import sys; from hmoe.cli.main import run_command_line as run\n"
        f"code = run(['report', {str(tmp_path / 'runs')!r}, '--out', {str(tmp_path / 'a.html')!r}])\n"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "1 run on one page of" in result.stdout
    again = render_page(read_report_inputs([str(tmp_path / "runs")]))
    commands = re.compile(r"<h3>Commands.*?</pre>", re.DOTALL)
    own = commands.sub("", (tmp_path / "a.html").read_text())
    assert re.sub(r"\s", "", own) == re.sub(r"\s", "", again)


def test_lines_are_thinned_and_smoothed_for_the_eye() -> None:
    assert thin_rows(range(100), 5) == [0, 25, 50, 74, 99]
    assert thin_rows([1, 2], 5) == [1, 2]
    points = [(float(i), float(i % 2)) for i in range(1000)]
    smoothed = smooth_points(points, 100)
    assert len(smoothed) == 100
    assert all(abs(y - 0.5) < 0.05 for _, y in smoothed)
    assert smooth_points(points[:5]) == points[:5]
