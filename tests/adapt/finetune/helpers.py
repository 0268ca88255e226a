"""A row of every task in its own columns, with the examples that it becomes."""

import json
from pathlib import Path
from typing import Any

PAIR = {"sentence1": "Cats purr.", "sentence2": "Dogs bark.", "idx": 0}
NLI = {"premise": "It rains.", "hypothesis": "It is wet.", "idx": 3}
ROWS: dict[str, tuple[dict[str, Any], list[tuple[str, tuple[str, ...]]]]] = {
    "cola": ({"sentence": "Cats purr.", "label": 1, "idx": 0}, [("cola sentence: Cats purr.", ("1",))]),
    "sst2": ({"sentence": "bad", "label": 0, "idx": 0}, [("sst2 sentence: bad", ("0",))]),
    "mrpc": ({**PAIR, "label": 1}, [("mrpc sentence1: Cats purr. sentence2: Dogs bark.", ("1",))]),
    "qqp": ({"question1": "Who?", "question2": "What?", "label": 0},
            [("qqp question1: Who? question2: What?", ("0",))]),
    "stsb": ({**PAIR, "label": 3.27}, [("stsb sentence1: Cats purr. sentence2: Dogs bark.", ("3.2",))]),
    "mnli": ({**NLI, "label": 2}, [("mnli premise: It rains. hypothesis: It is wet.", ("2",))]),
    "qnli": ({"question": "Who?", "sentence": "Me.", "label": 0}, [("qnli question: Who? sentence: Me.", ("0",))]),
    "rte": ({**PAIR, "label": 0}, [("rte sentence1: Cats purr. sentence2: Dogs bark.", ("0",))]),
    "wnli": ({**PAIR, "label": 0}, [("wnli sentence1: Cats purr. sentence2: Dogs bark.", ("0",))]),
    "superglue-boolq": ({"question": "is it", "passage": "It is.", "label": True},
                        [("superglue-boolq question: is it passage: It is.", ("1",))]),
    "superglue-cb": ({**NLI, "label": 2}, [("superglue-cb premise: It rains. hypothesis: It is wet.", ("2",))]),
    "superglue-copa": ({"premise": "It rains.", "choice1": "Wet.", "choice2": "Dry.", "question": "effect", "label": 0},
                       [("superglue-copa premise: It rains. choice1: Wet. choice2: Dry.", ("0",))]),
    "superglue-rte": ({**NLI, "label": 1}, [("superglue-rte premise: It rains. hypothesis: It is wet.", ("1",))]),
    "superglue-wic": ({"sentence1": "a bank", "sentence2": "the bank", "word": "bank", "label": 0},
                      [("superglue-wic sentence1: a bank sentence2: the bank word: bank", ("0",))]),
    "superglue-wsc.fixed": (
        {"text": "Mark told Pete, the liar,\nmany lies about himself.", "span1_text": "Pete", "span1_index": 2,
         "span2_text": "himself", "span2_index": 8, "label": 0},
        [("superglue-wsc.fixed text: Mark told * Pete *, the liar,\nmany lies about # himself #.", ("0",))]),
    "superglue-multirc": (
        {"question": "Who <b>is</b> it?", "answer": "Me", "paragraph": "It<br>is me.", "label": 1,
         "idx": {"paragraph": 4, "question": 2, "answer": 0}},
        [("superglue-multirc question: Who is it? answer: Me paragraph: It is me.", ("1",))]),
    "superglue-record": (
        {"query": "A @placeholder flies.", "entities": ["bird", "fish"], "answers": ["bird", "bird", "eagle"],
         "passage": "Birds fly.\n@highlight\nFish swim\n@highlight\nso"},
        [("superglue-record query: A @placeholder flies. entities: bird, fish passage: Birds fly. "
          "Fish swim. so", ("bird", "eagle"))]),
    "squad": ({"question": " Who? ", "context": "It was me.",
               "answers": {"text": ["me", "me", "I"], "answer_start": [7, 7, 7]}},
              [("question: Who? context: It was me.", ("me", "I"))]),
    "cnn_dailymail": ({"article": "Long.", "highlights": "Short.", "id": "1"}, [("summarize: Long.", ("Short.",))]),
    "wikitext2": ({"text": " = Title = \n"}, [(" = Title = \n", ())]),
}  # fmt: skip


def write(folder: Path, rows: list[dict[str, Any]], split: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
