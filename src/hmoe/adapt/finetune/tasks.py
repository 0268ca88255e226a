"""The tasks of HyperMoE's scripts, from text to text: GLUE, SuperGLUE, SQuAD, CNN/DailyMail, WikiText-2.

A source is the task's name, then fields with their labels: "mrpc sentence1: ... sentence2: ...". A class is
its number as text.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hmoe.adapt.finetune.example import TaskExample
from hmoe.adapt.finetune.settings import GLUE, LANGUAGE, QA, SUMMARY, FinetuneSettings
from hmoe.adapt.finetune.task_metrics import (
    Score,
    measure_accuracy,
    measure_correlations,
    measure_f1_and_accuracy,
    measure_grouped_answers,
    measure_macro_f1_and_accuracy,
    measure_matthews,
    measure_rouge,
    measure_squad_answers,
)
from hmoe.errors import ConfigError

Row = Mapping[str, Any]


@dataclass(frozen=True)
class FinetuneTask:
    """What a model can be fine-tuned on: where the data are, how a row becomes text, how answers are scored.

    Attributes:
        name: what users call it.
        dataset, subset: names on the Hugging Face hub.
        columns: that a local file must have.
        examples: makes the examples of a row.
        score: predictions, examples -> numbers by name, of which the first is the task's; None: the task is a
            text, scored by its perplexity.
        settings: the paper's.
        validation: name of the split that is scored.
        all_targets: train on each target, not on the first alone.
    """

    name: str
    dataset: str
    subset: str | None
    columns: tuple[str, ...]
    examples: Callable[[Row], Iterator[TaskExample]]
    score: Score | None
    settings: FinetuneSettings = GLUE
    validation: str = "validation"
    all_targets: bool = False


def get_finetune_task(name: str) -> FinetuneTask:
    """Return the task of that name.

    Raises:
        ConfigError: if there is none, naming those there are.
    """
    if name not in TASKS:
        raise ConfigError(f"task {name}: unknown; must be one of {', '.join(TASKS)}")
    return TASKS[name]


def _classes(
    name: str,
    dataset: str,
    subset: str,
    fields: dict[str, str],
    score: Score,
    classes: int = 2,
    **more: Any,
) -> FinetuneTask:
    """Return a classification task whose source is a row's fields with their labels.

    Args:
        name: of the task, with which every source begins.
        dataset, subset: names on the Hugging Face hub.
        fields: columns by label.
        score: how answers are scored.
        classes: how many there are.
        more: further arguments of `FinetuneTask`.
    """

    def examples(row: Row) -> Iterator[TaskExample]:
        words = [f"{label}: {_words(row, column)}" for label, column in fields.items()]
        yield TaskExample(" ".join([name, *words]), (_label(row, classes),))

    return FinetuneTask(name, dataset, subset, (*fields.values(), "label"), examples, score, **more)


def _words(row: Row, column: str) -> str:
    text = row[column]
    if not isinstance(text, str):
        raise ValueError(f"{column} = {text!r}, must be text")
    return text


def _label(row: Row, classes: int) -> str:
    label = row["label"]  # a table with a gap in this column holds its integers as 1.0
    whole = not isinstance(label, float) or label.is_integer()
    if not whole or int(label) not in range(classes):
        raise ValueError(f"label = {label!r}, must be an integer from 0 to {classes - 1}")
    return str(int(label))


def _own_labels(*columns: str) -> dict[str, str]:
    """Return fields whose labels are the names of their columns."""
    return {column: column for column in columns}


def _similarity(row: Row) -> Iterator[TaskExample]:
    """Yield the example of a row of STS-B: its target, from 0 to 5, is rounded to a fifth as in T5."""
    source = f"stsb sentence1: {_words(row, 'sentence1')} sentence2: {_words(row, 'sentence2')}"
    score = float(row["label"])
    if not 0 <= score <= 5:
        raise ValueError(f"label = {row['label']!r}, must be a number from 0 to 5")
    yield TaskExample(source, (f"{round(score * 5) / 5:.1f}",))


def _multirc(row: Row) -> Iterator[TaskExample]:
    """Yield the example of a row of MultiRC: an answer, grouped with the others to its question."""
    question, answer, paragraph = (
        _without_markup(_words(row, column)) for column in ("question", "answer", "paragraph")
    )
    source = f"superglue-multirc question: {question} answer: {answer} paragraph: {paragraph}"
    index = row["idx"]
    yield TaskExample(source, (_label(row, 2),), f"{int(index['paragraph'])}.{int(index['question'])}")


def _without_markup(text: str) -> str:
    return re.sub(r"</?b>", "", text.replace("<br>", " "))


def _record(row: Row) -> Iterator[TaskExample]:
    """Yield the example of a row of ReCoRD, whose highlights become sentences of the passage.

    Its targets are all answers that the row lists.
    """
    passage = re.sub(r"([.?!\"'])\n@highlight\n", r"\1 ", _words(row, "passage"))
    passage = passage.replace("\n@highlight\n", ". ")
    query, entities = _words(row, "query"), ", ".join(_texts(row["entities"], "entities"))
    source = f"superglue-record query: {query} entities: {entities} passage: {passage}"
    yield TaskExample(source, _texts(row["answers"], "answers") or ("<unk>",))


def _texts(values: Any, column: str) -> tuple[str, ...]:
    """Return the distinct texts of a list, in order."""
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{column} = {values!r}, must be a list of texts")
    return tuple(dict.fromkeys(values))


def _wsc(row: Row) -> Iterator[TaskExample]:
    """Yield the example of a row of WSC: *noun* and #pronoun# are marked as in T5."""
    text = _words(row, "text")
    # The marks of the first span are words too: they move a later second span by two.
    shift = 2 if row["span1_index"] < row["span2_index"] else 0
    for mark, name, moved in (("*", "span1", 0), ("#", "span2", shift)):
        words_before = rf"((?:\S+\s){{{int(row[f'{name}_index']) + moved}}})"
        span = re.escape(_words(row, f"{name}_text"))
        text = re.sub(f"^{words_before}({span})", rf"\1{mark} \2 {mark}", text, count=1)
    yield TaskExample(f"superglue-wsc.fixed text: {text}", (_label(row, 2),))


def _squad(row: Row) -> Iterator[TaskExample]:
    head = f"question: {_words(row, 'question').strip()} context:"
    answers = _texts(row["answers"]["text"], "answers.text") or ("",)
    yield TaskExample(f"{head} {_words(row, 'context').strip()}", answers, head=head)


def _summary(row: Row) -> Iterator[TaskExample]:
    yield TaskExample(f"summarize: {_words(row, 'article')}", (_words(row, "highlights"),))


def _text(row: Row) -> Iterator[TaskExample]:
    yield TaskExample(_words(row, "text"), ())


def _glue(
    subset: str, columns: tuple[str, ...], score: Score = measure_accuracy, **more: Any
) -> FinetuneTask:
    return _classes(subset, "nyu-mll/glue", subset, _own_labels(*columns), score, **more)


def _superglue(
    subset: str, fields: dict[str, str], score: Score = measure_accuracy, **more: Any
) -> FinetuneTask:
    return _classes(f"superglue-{subset}", "aps/super_glue", subset, fields, score, **more)


_PAIR, _NLI = ("sentence1", "sentence2"), ("premise", "hypothesis")
_STS = _glue("stsb", _PAIR, measure_correlations)
TASKS = {task.name: task for task in (
    _glue("cola", ("sentence",), measure_matthews),
    _glue("sst2", ("sentence",)),
    _glue("mrpc", _PAIR, measure_f1_and_accuracy),
    _classes("qqp", "nyu-mll/glue", "qqp", _own_labels("question1", "question2"), measure_f1_and_accuracy),
    replace(_STS, examples=_similarity),
    _glue("mnli", _NLI, classes=3, validation="validation_matched"),
    _glue("qnli", ("question", "sentence")),
    _glue("rte", _PAIR),
    _glue("wnli", _PAIR),
    _superglue("boolq", _own_labels("question", "passage")),
    _superglue("cb", _own_labels(*_NLI), measure_macro_f1_and_accuracy, classes=3),
    _superglue("copa", _own_labels("premise", "choice1", "choice2")),
    _superglue("rte", _own_labels(*_NLI)),
    _superglue("wic", _own_labels("sentence1", "sentence2", "word")),
    FinetuneTask("superglue-wsc.fixed", "aps/super_glue", "wsc.fixed",
                 ("text", "span1_index", "span1_text", "span2_index", "span2_text", "label"), _wsc,
                 measure_accuracy),
    FinetuneTask("superglue-multirc", "aps/super_glue", "multirc",
                 ("question", "answer", "paragraph", "idx", "label"), _multirc, measure_grouped_answers),
    FinetuneTask("superglue-record", "aps/super_glue", "record", ("query", "entities", "passage", "answers"),
                 _record, measure_squad_answers, replace(GLUE, target_length=30), all_targets=True),
    FinetuneTask("squad", "rajpurkar/squad", None, ("question", "context", "answers"), _squad,
                 measure_squad_answers, QA),
    FinetuneTask("cnn_dailymail", "abisee/cnn_dailymail", "3.0.0", ("article", "highlights"), _summary,
                 measure_rouge, SUMMARY),
    FinetuneTask("wikitext2", "Salesforce/wikitext", "wikitext-2-raw-v1", ("text",), _text, None, LANGUAGE),
)}  # fmt: skip


def change_task_settings(task: FinetuneTask, **changes: Any) -> FinetuneSettings:
    """Return a task's settings with some of them changed; a change to None leaves what the paper has.

    Raises:
        ConfigError: for values out of range.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    for name, value in given.items():
        least, most = {"seed": (0, 2**32 - 1), "source_length": (2, 2**20)}.get(name, (1, 10**9))
        if name == "lr" and not 0 < value < 1:
            raise ConfigError(f"lr = {value}, must be above 0 and below 1", argument="lr")
        if name != "lr" and not least <= value <= most:
            raise ConfigError(f"{name} = {value}, must be from {least} to {most}", argument=name)
    return replace(task.settings, **given)
