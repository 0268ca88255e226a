"""A folder of runs and its page, made once for all tests of the page."""

from pathlib import Path

import pytest

from hmoe.report.inputs import read_report_inputs
from hmoe.report.page import render_page
from tests.report.run_example import write_example


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_example(tmp_path_factory.mktemp("report") / "runs")


@pytest.fixture(scope="session")
def page(example: Path) -> str:
    return render_page(read_report_inputs([str(example)]), "A <b>title</b>")
