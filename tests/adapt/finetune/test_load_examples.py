"""Files of a task's examples: what is read, and what is told of files that do not fit."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hmoe.adapt.finetune.load_examples import _file, load_task_examples
from hmoe.adapt.finetune.tasks import get_finetune_task
from hmoe.errors import DataError
from tests.adapt.finetune.helpers import ROWS, write


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"sentence": "a"}], "has no column label; cola needs sentence, label"),
        ([{"sentence": "a", "label": "yes"}], "jsonl: row 1 is not as cola has them: ValueError"),
        ([{"sentence": "a", "label": -1}], "label = -1, must be an integer from 0 to 1"),
        ([{"sentence": "a", "label": 0.5}], "label = 0.5, must be an integer"),
        ([{"sentence": None, "label": 1}], "sentence = None, must be text"),
        ([], "validation.jsonl: empty file"),
    ],
)
def test_files_that_do_not_fit_are_one_line(rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    write(tmp_path, [{"sentence": "a", "label": 1}], "train")
    write(tmp_path, rows, "validation")
    with pytest.raises(DataError, match=message) as error:
        load_task_examples(get_finetune_task("cola"), tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match=r"no file train with an ending of .jsonl"):
        load_task_examples(get_finetune_task("cola"), tmp_path / "nowhere")


def test_lists_that_are_no_lists_are_told(tmp_path: Path) -> None:
    for name, column, value in (
        ("squad", "answers", {"text": "me", "answer_start": [0]}),
        ("superglue-record", "answers", [1]),
    ):
        for split in ("train", "validation"):
            write(tmp_path, [ROWS[name][0] | {column: value}], split)
        with pytest.raises(DataError, match="must be a list of texts"):
            load_task_examples(get_finetune_task(name), tmp_path)
    (tmp_path / "train.jsonl").write_text('{"sentence": "a", "label": 1')
    with pytest.raises(DataError, match=r"train\.jsonl: cannot be read \((?!DatasetGenerationError)"):
        load_task_examples(get_finetune_task("cola"), tmp_path)


def test_lines_of_a_text_keep_their_ends(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        (tmp_path / f"{split}.txt").write_text(" = A = \n\nIt was.\n")
    assert [
        example.source for example in load_task_examples(get_finetune_task("wikitext2"), tmp_path)[0]
    ] == [
        " = A = \n",
        "\n",
        "It was.\n",
    ]


def test_two_files_of_one_split_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train.csv").touch()
    assert _file(tmp_path, "train") == tmp_path / "train.csv"
    (tmp_path / "train.jsonl").touch()
    with pytest.raises(DataError, match=r"holds train\.jsonl and train\.csv; keep one of them"):
        _file(tmp_path, "train")


def test_a_malformed_row_has_its_number(tmp_path: Path) -> None:
    rows = [{"sentence1": "a", "sentence2": "b", "label": label} for label in (3.2, 0.0, 5.5)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        DataError,
        match=r"train\.jsonl: row 3 is not as stsb has them: ValueError: label = 5\.5, must be a number from 0 to 5",
    ):
        load_task_examples(get_finetune_task("stsb"), tmp_path)


@pytest.mark.parametrize(
    ("task", "ending", "text", "told"),
    [
        ("mrpc", "jsonl", '{"sentence1": "a"}\n\n{bad\n', "line 3 is not a JSON object: '{bad'"),
        ("squad", "jsonl", '{"paragraphs": []}\n{"paragraphs"\n', "line 2 is not a JSON object"),
        ("mrpc", "csv", "sentence1,sentence2,label\na,b,1\na,b\n", "row 2 is not as mrpc has them"),
    ],
)
def test_a_line_that_no_parser_reads_has_its_number(
    task: str, ending: str, text: str, told: str, tmp_path: Path
) -> None:
    (tmp_path / f"train.{ending}").write_text(text)
    with pytest.raises(DataError, match=re.escape(told)):
        load_task_examples(get_finetune_task(task), tmp_path)
