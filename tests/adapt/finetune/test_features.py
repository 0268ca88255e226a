"""Windows of a long SQuAD context cover it, whatever the lengths."""

import random
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from hmoe.adapt.finetune.example import TaskExample
from hmoe.adapt.finetune.features import count_cut_heads, cut_source_windows
from hmoe.adapt.finetune.tasks import change_task_settings, get_finetune_task


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
                example = TaskExample(question + "".join(body), (), head=question)
                settings = replace(get_finetune_task("squad").settings, source_length=length, stride=stride)
                case = (length, len(question), stride)
                rows = [row["input_ids"] for row in cut_source_windows(example, Letters(), settings)]
                read = {token for row in rows for token in row}
                assert {ord(letter) for letter in body} <= read, case
                assert max(map(len, rows)) <= length, case
                assert all(row[-1] == Letters.end for row in rows), case
                assert len(rows) <= 2 + 90 * 2, case
                if len(question) + 1 < length:
                    assert all(
                        row[: len(question)] == [ord("q" if "q" in question else c) for c in question]
                        for row in rows
                    ), case
                assert count_cut_heads([example], Letters(), settings) == (
                    question != "" and len(question) + 1 >= length
                ), case


def test_windows_share_the_stride_where_it_fits() -> None:
    example = TaskExample("ab" + "".join(chr(1000 + i) for i in range(20)), (), head="ab")
    settings = replace(get_finetune_task("squad").settings, source_length=11, stride=3)  # room for 8
    rows = [row["input_ids"] for row in cut_source_windows(example, Letters(), settings)]
    assert [row[2] - 1000 for row in rows] == [0, 5, 10, 15]
    assert rows[0] == [ord("a"), ord("b"), *range(1000, 1008), 1]


def test_every_window_has_the_question_and_all_of_the_context_is_read(switch: Path) -> None:
    fast = PreTrainedTokenizerFast.from_pretrained(switch)
    context = " ".join(random.Random(0).choices("good bad film story plot".split(), k=900))  # noqa: SIM905
    settings = change_task_settings(get_finetune_task("squad"), source_length=100)
    settings = replace(settings, stride=20)
    rows = cut_source_windows(
        TaskExample(f"question: who ? context: {context}", ("me",), head="question: who ? context:"),
        fast,
        settings,
    )
    head = fast("question: who ? context:", add_special_tokens=False)["input_ids"]
    bodies = []
    for window in rows:
        assert len(window["input_ids"]) <= 100
        assert window["input_ids"][: len(head)] == head
        assert window["input_ids"][-1] == 1
        bodies.append(window["input_ids"][len(head) : -1])
    whole = bodies[0] + [token for body in bodies[1:] for token in body[20:]]
    assert whole == fast(context, add_special_tokens=False)["input_ids"]
