"""Windows of a long SQuAD context cover it, whatever the lengths; its official nested files are read, and faults have a place."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hmoe.adapt.finetune.features import count_cut_heads, windows
from hmoe.adapt.finetune.load_examples import load
from hmoe.adapt.finetune.tasks import Example, find
from hmoe.errors import DataError


class Letters:
    """A tokenizer: a token per character, and an end."""

    end = 1

    def __call__(
        self, text: str, add_special_tokens: bool = True, max_length: int = 10**9, truncation: bool = False
    ) -> dict[str, list[int]]:
        ids = [ord(letter) for letter in text] + [self.end] * add_special_tokens
        if len(ids) > max_length:
            ids = [*ids[: max_length - 1], self.end]
        return {"input_ids": ids, "attention_mask": [1] * len(ids)}


def test_every_token_of_a_context_is_in_a_window() -> None:
    body = [chr(1000 + i) for i in range(90)]
    for length in (2, 3, 5, 8, 13, 30, 60, 89, 92, 200):
        for question in ("", "why", "q" * 11, "q" * 29, "q" * 150):
            for stride in (1, 7, 128):
                example = Example(question + "".join(body), (), head=question)
                settings = replace(find("squad").settings, source_length=length, stride=stride)
                case = (length, len(question), stride)
                rows = [row["input_ids"] for row in windows(example, Letters(), settings)]
                read = {token for row in rows for token in row}
                assert {ord(letter) for letter in body} <= read, case
                assert max(map(len, rows)) <= length, case
                assert all(row[-1] == Letters.end for row in rows), case
                assert len(rows) <= 2 + 90 * 2, case
                if len(question) + 1 < length:
                    assert all(
                        row[: len(question)] == [ord("q" if "q" in question else c) for c in question] for row in rows
                    ), case
                assert count_cut_heads([example], Letters(), settings) == (
                    question != "" and len(question) + 1 >= length
                ), case


def test_windows_share_the_stride_where_it_fits() -> None:
    example = Example("ab" + "".join(chr(1000 + i) for i in range(20)), (), head="ab")
    settings = replace(find("squad").settings, source_length=11, stride=3)  # room for 8
    rows = [row["input_ids"] for row in windows(example, Letters(), settings)]
    assert [row[2] - 1000 for row in rows] == [0, 5, 10, 15]
    assert rows[0] == [ord("a"), ord("b"), *range(1000, 1008), 1]


def official(**change: Any) -> dict[str, Any]:
    """SQuAD 1.1's layout; 2.0 has questions without answers."""
    questions = [
        {
            "id": "1",
            "question": "Who?",
            "answers": [{"text": "me", "answer_start": 7}, {"text": "I", "answer_start": 0}],
        },
        {"id": "2", "question": "Why?", "answers": [], "is_impossible": True} | change,
    ]
    article = {"title": "It", "paragraphs": [{"context": "It was me.", "qas": questions}]}
    return {"version": "2.0", "data": [article, article]}


@pytest.mark.parametrize("layout", ["official", "articles", "lines"])
def test_official_files_are_read(layout: str, tmp_path: Path) -> None:
    whole = official()
    for split in ("train", "validation"):
        text = json.dumps(whole if layout == "official" else whole["data"])
        if layout == "lines":
            text = "".join(json.dumps(article) + "\n" for article in whole["data"])
        (tmp_path / f"{split}.{'jsonl' if layout == 'lines' else 'json'}").write_text(text)
    train, validation = load(find("squad"), tmp_path)
    assert [example.source for example in train] == [
        "question: Who? context: It was me.",
        "question: Why? context: It was me.",
    ] * 2
    assert [example.targets for example in validation] == [("me", "I"), ("",)] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": "me"}, "article 1, paragraph 1, question 2: answers = 'me', must be a list"),
        ({"question": None}, "article 1, paragraph 1, question 2: question = 'None', must be text"),
        ({"answers": [{"answer_start": 1}]}, "article 1, paragraph 1, question 2, answer 1: has no text"),
    ],
)
def test_what_is_not_as_squad_has_it_is_named_by_its_place(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "train.json").write_text(json.dumps(official(**change)))
    with pytest.raises(DataError, match=message):
        load(find("squad"), tmp_path)


def test_a_malformed_row_has_its_number(tmp_path: Path) -> None:
    rows = [{"sentence1": "a", "sentence2": "b", "label": label} for label in (3.2, 0.0, 5.5)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        DataError,
        match=r"train\.jsonl: row 3 is not as stsb has them: ValueError: label = 5\.5, must be a number from 0 to 5",
    ):
        load(find("stsb"), tmp_path)


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
        load(find(task), tmp_path)
