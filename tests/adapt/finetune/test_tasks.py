"""Every task from a row in its own columns, and every score, worked by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from hmoe import ConfigError
from hmoe.adapt.finetune import task_metrics
from hmoe.adapt.finetune.load_examples import _file, load
from hmoe.adapt.finetune.tasks import TASKS, Example, find, settings_of
from hmoe.errors import DataError

PAIR = {"sentence1": "Cats purr.", "sentence2": "Dogs bark.", "idx": 0}
NLI = {"premise": "It rains.", "hypothesis": "It is wet.", "idx": 3}
ROWS: dict[str, tuple[dict[str, Any], list[tuple[str, tuple[str, ...]]]]] = {
    "cola": ({"sentence": "Cats purr.", "label": 1, "idx": 0}, [("cola sentence: Cats purr.", ("1",))]),
    "sst2": ({"sentence": "bad", "label": 0, "idx": 0}, [("sst2 sentence: bad", ("0",))]),
    "mrpc": ({**PAIR, "label": 1}, [("mrpc sentence1: Cats purr. sentence2: Dogs bark.", ("1",))]),
    "qqp": ({"question1": "Who?", "question2": "What?", "label": 0}, [("qqp question1: Who? question2: What?", ("0",))]),
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
        [("superglue-record query: A @placeholder flies. entities: bird, fish passage: Birds fly. Fish swim. so", ("bird", "eagle"))]),
    "squad": ({"question": " Who? ", "context": "It was me.", "answers": {"text": ["me", "me", "I"], "answer_start": [7, 7, 7]}},
              [("question: Who? context: It was me.", ("me", "I"))]),
    "cnn_dailymail": ({"article": "Long.", "highlights": "Short.", "id": "1"}, [("summarize: Long.", ("Short.",))]),
    "wikitext2": ({"text": " = Title = \n"}, [(" = Title = \n", ())]),
}  # fmt: skip


def write(folder: Path, rows: list[dict[str, Any]], split: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_there_is_a_row_for_every_task() -> None:
    assert set(ROWS) == set(TASKS)


@pytest.mark.parametrize("name", list(ROWS))
def test_a_row_becomes_text(name: str, tmp_path: Path) -> None:
    row, expected = ROWS[name]
    for split in ("train", "validation"):
        write(tmp_path, [row, row], split)
    for found in load(find(name), tmp_path):
        assert [(example.source, example.targets) for example in found] == expected * 2
    if name == "superglue-multirc":
        assert found[0].group == "4.2"


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
        load(find("cola"), tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match=r"no file train with an ending of .jsonl"):
        load(find("cola"), tmp_path / "nowhere")


def test_what_is_unknown_or_out_of_range_is_named() -> None:
    with pytest.raises(ConfigError, match="task colla: unknown; must be one of cola, sst2"):
        find("colla")
    with pytest.raises(ConfigError, match="seed = 4294967296, must be from 0 to 4294967295"):
        settings_of(find("cola"), seed=2**32)
    with pytest.raises(ConfigError, match="epochs = 0, must be from 1"):
        settings_of(find("cola"), epochs=0)
    with pytest.raises(ConfigError, match="lr = 2, must be above 0 and below 1"):
        settings_of(find("cola"), lr=2)
    paper = settings_of(find("squad"), lr=None)
    assert (paper.lr, paper.epochs, paper.batch, paper.source_length, paper.stride, paper.seed) == (
        3e-5,
        10,
        8,
        384,
        128,
        42,
    )


def examples(*targets: str, groups: str = "") -> list[Example]:
    return [Example("", tuple(target.split("|")), groups[i : i + 1]) for i, target in enumerate(targets)]


def test_scores_by_hand() -> None:
    binary = examples("1", "0", "1", "1")
    assert task_metrics.accuracy(["1", "0", "x", "0"], binary) == {"accuracy": 50}
    found = task_metrics.f1_and_accuracy(
        ["1", "1", "x", "0"], binary
    )  # x counts as 0: one true, one false positive, two missed
    assert found == pytest.approx({"f1": 40, "accuracy": 25})
    assert task_metrics.matthews(["1", "0", "1", "1"], binary) == {"matthews": 100}
    assert task_metrics.matthews(["x", "x", "x", "x"], binary)["matthews"] == -100
    assert task_metrics.grouped(["1", "0", "1", "0"], examples("1", "0", "1", "1", groups="aabb"))["exact_match"] == 50
    macro = task_metrics.macro_f1_and_accuracy(["0", "0", "2"], examples("0", "1", "2"))  # 2/3, 0 and 1
    assert macro == pytest.approx({"f1": 100 * 5 / 9, "accuracy": 200 / 3})
    assert task_metrics.correlations(["1.0", "2.0", "4.0"], examples("0.0", "2.0", "3.0"))["spearman"] == pytest.approx(
        100
    )
    assert task_metrics.correlations(["nan", "no"], examples("0.0", "2.0")) == {"pearson": 0, "spearman": 0}
    words = task_metrics.squad(["The big cat!", "a dog", ""], examples("big cat|cat", "big dog", ""))
    assert words == pytest.approx({"f1": 100 * (1 + 2 / 3 + 1) / 3, "exact_match": 200 / 3})
    rouge = task_metrics.rouge(["the cat sat down"], examples("the cat sat up"))
    assert rouge == pytest.approx({"rouge1": 75, "rouge2": 200 / 3, "rougeL": 75})


def test_lists_that_are_no_lists_are_told(tmp_path: Path) -> None:
    for name, column, value in (
        ("squad", "answers", {"text": "me", "answer_start": [0]}),
        ("superglue-record", "answers", [1]),
    ):
        for split in ("train", "validation"):
            write(tmp_path, [ROWS[name][0] | {column: value}], split)
        with pytest.raises(DataError, match="must be a list of texts"):
            load(find(name), tmp_path)
    (tmp_path / "train.jsonl").write_text('{"sentence": "a", "label": 1')
    with pytest.raises(DataError, match=r"train\.jsonl: cannot be read \((?!DatasetGenerationError)"):
        load(find("cola"), tmp_path)


def test_lines_of_a_text_keep_their_ends(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        (tmp_path / f"{split}.txt").write_text(" = A = \n\nIt was.\n")
    assert [example.source for example in load(find("wikitext2"), tmp_path)[0]] == [" = A = \n", "\n", "It was.\n"]


def test_two_files_of_one_split_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train.csv").touch()
    assert _file(tmp_path, "train") == tmp_path / "train.csv"
    (tmp_path / "train.jsonl").touch()
    with pytest.raises(DataError, match=r"holds train\.jsonl and train\.csv; keep one of them"):
        _file(tmp_path, "train")
