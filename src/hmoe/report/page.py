"""Makes the page: sections into one file of HTML that needs nothing else."""

import contextlib
import gc
import re
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from hmoe import __version__
from hmoe.errors import ConfigError, make_missing_extra_error
from hmoe.figures.charts import render_chart
from hmoe.figures.colours import WIDTHS, pick_colour
from hmoe.figures.records import Chart
from hmoe.report.headline import Headline, write_headline
from hmoe.report.inputs import ReportInputs
from hmoe.report.inside import describe_insides
from hmoe.report.learning import describe_learning
from hmoe.report.over_training import describe_training
from hmoe.report.pieces import PagePart, PageSection
from hmoe.report.placed_experts import describe_placed_experts
from hmoe.report.recipes import describe_recipes, describe_samples, list_notes
from hmoe.report.results import describe_results
from hmoe.report.sweep_sections import SweepRecord, describe_sweep, write_sweep_headline
from hmoe.report.words import explain_words
from hmoe.storage import write_atomic

_MARK = '<!doctype html>\n<html lang="en" data-page="hmoe report">'  # how each of our pages begins
_TEMPLATES = "hmoe.report.templates"


def render_page(inputs: ReportInputs, title: str | None = None, commands: Sequence[str] = ()) -> str:
    """Return the page; the same files give the same page.

    Args:
        inputs: what it is made from.
        title: by default the names of the recipes.
        commands: that make the runs and the page again.

    Raises:
        ConfigError: if jinja2 or matplotlib is not installed.
    """
    title = title or f"hmoe report: {', '.join(group.name for group in inputs.groups)}"
    return _render_sections(title, write_headline(inputs), list_sections(inputs, commands))


def render_sweep_page(
    sweep: SweepRecord, inputs: ReportInputs | None, title: str, commands: Sequence[str] = ()
) -> str:
    """Return the page of a sweep, from its table alone.

    Args:
        sweep: its rows, fits and choices.
        inputs: its groups side by side; None where they differ in size or learning rate and are no comparison.
        title: of the page.
        commands: that make the sweep and the page again.

    Raises:
        ConfigError: if jinja2 or matplotlib is not installed.
    """
    own = describe_sweep(sweep)
    if inputs is None:
        part = PagePart("Commands", commands=commands)
        origin = [PageSection("recipes", "How they were made", parts=[part])] if commands else []
        return _render_sections(title, write_sweep_headline(sweep), [*own, *origin])
    sections = [describe_results(inputs), *own, describe_recipes(inputs, commands), list_notes(inputs, [])]
    return _render_sections(title, write_headline(inputs), [section for section in sections if section])


def _render_sections(title: str, headline: Headline, sections: Sequence[PageSection]) -> str:
    try:
        import jinja2  # noqa: PLC0415 - optional extra
        from markupsafe import Markup  # noqa: PLC0415
    except ImportError:
        raise make_missing_extra_error("reports", "plot") from None
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read_template),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    names = _name_figures()

    def draw(chart: Chart) -> Any:
        svg = render_chart(chart, "svg", prefix=next(names), shows_title=False).decode()
        return Markup(_shorten_numbers(svg))

    with _pause_collection():
        page: str = environment.get_template("page.html").render(
            mark=Markup(_MARK),
            title=title,
            headline=headline,
            sections=sections,
            style=Markup(_read_template("page.css")),
            script=Markup(_read_template("page.js")),
            version=__version__,
            draw=draw,
            colour=lambda place: pick_colour(WIDTHS, place),
            scale=[pick_colour(WIDTHS, place / 8) for place in range(9)],
        )
    return page


@contextlib.contextmanager
def _pause_collection() -> Iterator[None]:
    """Leave cyclic garbage lie: looking for it among matplotlib's many objects takes a sixth of the time of a page."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def list_sections(inputs: ReportInputs, commands: Sequence[str] = ()) -> list[PageSection]:
    """Return the sections that the inputs have something for, in the order of the page."""
    insides, further = describe_insides(inputs)
    notes = list_notes(inputs, further)
    sections = [
        describe_results(inputs),
        describe_learning(inputs),
        describe_training(inputs),
        *insides,
        describe_placed_experts(inputs),
        describe_samples(inputs),
        describe_recipes(inputs, commands),
        notes,
        explain_words() if insides else None,
    ]
    return [section for section in sections if section is not None]


def write_page(file: Path, page: str) -> int:
    """Write a page in place of an earlier one of ours, and return its size in bytes.

    Raises:
        ConfigError: if something else lies there.
    """
    check_target(file)
    content = page.encode("utf-8", "replace")
    write_atomic(file, content)
    return len(content)


def check_target(file: Path) -> None:
    """Raise ConfigError if a page cannot be written to a place, so that it is known before the work.

    Only what begins as our pages do is ever replaced.
    """
    if file.is_dir():
        raise ConfigError(
            f"out = {file}: is a folder; name a file such as {file / 'page.html'}", argument="out"
        )
    if not file.parent.is_dir():
        raise ConfigError(f"out = {file}: there is no folder {file.parent}", argument="out")
    if not file.exists():
        return
    mark = _MARK.encode()
    with file.open("rb") as opened:
        head = opened.read(len(mark))
    if head != mark:
        raise ConfigError(
            f"out = {file}: exists and is no page of this verb; choose another file, or move it away",
            argument="out",
        )


def _read_template(name: str) -> str:
    return resources.files(_TEMPLATES).joinpath(name).read_text("utf-8")


def _name_figures() -> Iterator[str]:
    number_of_figure = 0
    while True:
        number_of_figure += 1
        yield f"figure{number_of_figure}"


def _shorten_numbers(svg: str) -> str:
    """Return a picture with two decimals in its coordinates: a hundredth of a pixel is seen by nobody."""
    head, mark, body = svg.partition("</desc>")
    # Inside tags only: between them are the numbers of the axes.
    return head + mark + re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), body)
