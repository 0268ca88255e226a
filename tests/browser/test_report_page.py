"""The page of `hmoe report` as a reader meets it: three widths, both themes, keyboard, paper, without a network."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

pytestmark = pytest.mark.browser
WIDTHS, THEMES = (360, 800, 1600), ("light", "dark")
_CONTRAST = """() => {
  const parse = colour => (colour.match(/[\\d.]+/g) || []).map(Number);
  const shine = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const wrong = [];
  for (const e of document.querySelectorAll("p, li, h1, h2, h3, h4, th, td, summary, a, figcaption, small, mark, button, blockquote")) {
    if (!e.textContent.trim() || e.closest(".hidden, .skip")) continue;
    const [low, high] = [shine(parse(getComputedStyle(e).color)), shine(ground(e))].sort((a, b) => a - b);
    if ((high + 0.05) / (low + 0.05) < 4.5) wrong.push(e.outerHTML.slice(0, 80));
  }
  return wrong;
}"""  # noqa: E501


@pytest.fixture
def opened(browser: Any, page_file: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A page of the width and theme that the test asks for; it fails on what the console or the network sees."""
    width, theme = getattr(request, "param", (800, "light"))
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "request",
        lambda asked: problems.append(asked.url) if not asked.url.startswith(("file://", "data:")) else None,
    )
    page.goto(page_file.as_uri())
    yield page
    assert problems == []
    page.close()


every_view = pytest.mark.parametrize(
    "opened", [(width, theme) for width in WIDTHS for theme in THEMES], indirect=True, ids=str
)


@every_view
def test_nothing_is_cut_and_every_figure_is_seen(opened: Any, screenshots: Path) -> None:
    width = opened.viewport_size["width"]
    assert opened.evaluate("document.documentElement.scrollWidth") == width
    opened.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
    assert opened.evaluate("document.documentElement.scrollWidth") == width
    opened.evaluate("for (const part of document.querySelectorAll('details')) part.open = false")
    figures = opened.locator("figure svg").all()
    assert len(figures) > 15
    for figure in figures:
        box = figure.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert min(box["width"], box["height"]) > 60
        assert figure.get_attribute("role") == "img"
        names = figure.get_attribute("aria-labelledby").split()
        assert all(opened.locator(f"#{name}").text_content().strip() for name in names)
    assert opened.evaluate(_CONTRAST) == []
    theme = "dark" if opened.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") else "light"
    opened.screenshot(path=screenshots / f"report-{width}-{theme}.png", full_page=True)


def test_hostile_texts_stay_texts(opened: Any) -> None:
    assert opened.title().startswith("hmoe report: ")
    assert opened.locator("main img, main script").count() == 0
    assert "<script>document.title" in opened.locator("blockquote").first.text_content()


@pytest.mark.parametrize("opened", [(800, "light"), (800, "dark")], indirect=True, ids=str)
def test_the_button_changes_the_theme_and_its_name(opened: Any) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    before, button = opened.evaluate(ground), opened.get_by_role("button")
    name = button.text_content()
    button.focus()
    opened.keyboard.press("Enter")
    assert opened.evaluate(ground) != before
    assert button.text_content() != name
    opened.keyboard.press("Enter")
    assert opened.evaluate(ground) == before


def test_the_keyboard_reaches_everything_in_order_and_shows_where_it_is(opened: Any) -> None:
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.className") == "skip"
    num_wanted = opened.evaluate(
        "[...document.querySelectorAll('a, button, summary, [tabindex=\"0\"]')].filter(e => e.checkVisibility()).length"
    )
    tops, num_reached = [], 1
    for _ in range(2 * num_wanted):
        opened.keyboard.press("Tab")
        outside = opened.evaluate("document.activeElement === document.body")
        if outside or opened.evaluate("document.activeElement.className") == "skip":
            break
        num_reached += 1
        assert opened.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        tops.append(opened.evaluate("document.activeElement.closest('section')?.offsetTop ?? -1"))
    assert num_reached == num_wanted
    assert tops == sorted(tops)


def test_details_open_by_keyboard_and_their_csv_is_the_table(opened: Any) -> None:
    summaries = opened.locator("figure details > summary").all()
    assert summaries
    for summary in summaries:
        details = summary.locator("xpath=..")
        assert not details.evaluate("part => part.open")
        summary.focus()
        opened.keyboard.press("Enter")
        assert details.evaluate("part => part.open")
        assert details.locator("table").is_visible()
    for place, link in enumerate(opened.locator(".csv a").all()):
        read = list(csv.reader(io.StringIO(unquote(link.get_attribute("href").partition(",")[2]))))
        table = opened.locator("table").nth(place)
        told = table.locator("xpath=../following-sibling::p[1]").text_content()
        shown = table.locator("tbody tr").count()
        assert len(read) - 1 == shown or (len(read) - 1 > shown and f"{len(read) - 1:,} rows in view" in told)
        assert all(
            table.locator("th[scope]").count() == shown + table.locator("thead th").count() for _ in [0]
        )
        assert link.get_attribute("download").endswith(".csv")
    results = opened.locator("table").first
    read = list(
        csv.DictReader(
            io.StringIO(unquote(opened.locator(".csv a").first.get_attribute("href").partition(",")[2]))
        )
    )
    cells = [row.locator("th, td").all_text_contents() for row in results.locator("tbody tr").all()]
    assert [(row[0], row[2]) for row in cells] == [
        (row["recipe"], f"{float(row['bits_per_byte']):.4f}") for row in read
    ]


def test_landmarks_and_links_lead_somewhere(opened: Any) -> None:
    for name in ("banner", "navigation", "main", "contentinfo"):
        assert opened.get_by_role(name).count() == 1
    links = opened.locator("nav a").all()
    assert len(links) == opened.locator("main section").count()
    for link in links:
        assert opened.locator(link.get_attribute("href")).count() == 1


@pytest.mark.parametrize("opened", [(800, "dark")], indirect=True, ids=str)
def test_paper_is_white_and_has_no_controls(opened: Any, screenshots: Path) -> None:
    opened.emulate_media(media="print")
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert opened.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert not opened.get_by_role("button").is_visible()
    assert not opened.locator("nav").is_visible()
    assert opened.locator("figure svg").first.is_visible()
    opened.pdf(path=screenshots / "report.pdf")
