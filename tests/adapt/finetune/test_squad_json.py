"""SQuAD's official nested files are read, and faults have a place."""

import json
from pathlib import Path
from typing import Any

import pytest

from hmoe.adapt.finetune.load_examples import load_task_examples
from hmoe.adapt.finetune.tasks import get_finetune_task
from hmoe.errors import DataError


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
    train, validation = load_task_examples(get_finetune_task("squad"), tmp_path)
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
        load_task_examples(get_finetune_task("squad"), tmp_path)
