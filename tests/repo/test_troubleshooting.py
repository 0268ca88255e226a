"""docs/guides/troubleshooting.md: each error comes as the page shows it, and each cure works."""

import re
from pathlib import Path

from tests.repo.pages import list_commands, run_commands

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "troubleshooting.md"
COMMANDS = list_commands(PAGE.read_text())


def test_twenty_one_errors_have_their_message_on_the_page() -> None:
    messages = [
        c.output for c in COMMANDS if c.output is not None and re.search("^hmoe: ", c.output, re.MULTILINE)
    ]
    assert len(messages) == 21


def test_errors_come_as_the_page_shows_them_and_cures_work(tmp_path: Path, command_path: str) -> None:
    for commands in COMMANDS:
        run_commands(PAGE, commands, tmp_path, command_path)
