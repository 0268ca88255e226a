"""What reads the pages' blocks and compares their output, since a comparison that never fails proves nothing."""

import pytest

from tests.repo.pages import compare_output, list_commands, list_files

PRINTED = "model: 1.05M parameters\nstep 10: loss 6.10   on -3e-2\nwrites: 'a b'\n\nfinished: step 10\n"


@pytest.mark.parametrize(
    "promised",
    [
        "model: 2.96M parameters\nstep 7: loss 5 on 1.5e+12\nwrites: ...\nfinished: step 1,000\n",
        "...\nfinished: step 3\n",
        "model: 1.05M parameters\n...\n",
        "model: ... parameters\n...\nwrites: 'a b'\n...\n",
        "...\n",
    ],
)
def test_output_that_differs_in_numbers_and_skipped_parts_matches(promised: str) -> None:
    assert compare_output(promised, PRINTED) == ""


@pytest.mark.parametrize(
    ("promised", "fault"),
    [
        ("model: many parameters\n...\n", "model: many parameters"),
        ("model: 1.05M parameters\nfinished: step 10\n", "finished: step 10"),
        ("...\nstep 10: loss 6.10 of -3e-2\n...\n", "step 10: loss 6.10 of -3e-2"),
        ("...\nwrites: 'a b'\n", "(the end)"),
        ("...\nfinished: step 10\nmore\n", "more"),
        ("...\nfinished: step ten\n", "finished: step ten"),
    ],
)
def test_output_that_differs_in_words_is_told(promised: str, fault: str) -> None:
    assert compare_output(promised, PRINTED) == fault


def test_an_output_stands_right_after_its_commands() -> None:
    page = "```sh\na\n```\n\n```text\nb\n```\n\n```sh\nc\n```\n\nWords.\n\n```text\nd\n```\n"
    assert list_commands(page) == [("a\n", "b\n", 1), ("c\n", None, 9)]


def test_files_are_named_in_their_first_line() -> None:
    page = "```yaml\n# mine.yaml\nbase: tiny\n```\n```python\nimport torch\n```\n```python\n# own.py\nx = 1\n```\n"
    assert list_files(page) == {"mine.yaml": "# mine.yaml\nbase: tiny\n", "own.py": "# own.py\nx = 1\n"}
