"""What benchmark tasks activate, question by question: table 3 of the HMoE paper with intervals."""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from hmoe.analyze.traced_text import Row
from hmoe.data.tokenizer import Tokenizer
from hmoe.errors import ConfigError
from hmoe.evaluate import harness
from hmoe.evaluate.read_counts import QuestionCounts
from hmoe.evaluate.tasks import TaskSelection, silence_harness
from hmoe.model.transformer import Transformer
from hmoe.specs.model import ModelSpec
from hmoe.statistics.paired import adjust_holm
from hmoe.statistics.ratios import RatioEstimate, compare_ratios, estimate_ratio


def measure_questions(
    model: Transformer,
    tokenizer: Tokenizer,
    context_length: int,
    selection: TaskSelection,
    options: harness.EvaluationOptions | None = None,
    progress: Callable[[str, int, int], None] = lambda task, done, total: None,
) -> dict[str, list[Row]]:
    """Evaluate tasks and return what their questions activated, and how tasks differ.

    Tokens are those that `hmoe eval` reads: of each question the context once, and every choice.

    Args:
        model: the model, in evaluation mode; precision float32 changes its weights to that.
        tokenizer: the model's tokenizer.
        context_length: tokens read at once.
        selection: what `hmoe.evaluate.tasks.select_tasks` made of names.
        options: how to evaluate, by default all questions; `begin` are the tokens before every text of the model.
        progress: called with (task, sequences done, sequences in all).

    Returns:
        tasks, task_differences: see `list_task_tables`.

    Raises:
        ConfigError: for a dense model, or a task that makes the model write text, which is not counted.
        DataError: if a task cannot be read.
    """
    if model.config.moe is None:
        raise ConfigError("the model is dense and has no experts to look at")
    from hmoe.evaluate.language_model import LanguageModel  # noqa: PLC0415 - optional extra, tested by select

    options = options or harness.EvaluationOptions()
    lm = LanguageModel(
        model, tokenizer, context_length, options.batch_tokens, options.precision, options.begin,
        workers=options.workers,
    )  # fmt: skip
    questions = {}
    for task in selection.names:
        lm.report = functools.partial(progress, task)
        harness.evaluate_task(lm, selection, task, options)
        questions[task] = list(lm.measured.questions.values())
        if not questions[task]:
            raise ConfigError(f"task {task}: has no answers to score, only text to be written; leave it out")
    return list_task_tables(questions, model.config)


def list_task_tables(
    questions: Mapping[str, Sequence[QuestionCounts]], model: ModelSpec
) -> dict[str, list[Row]]:
    """Return flat tables of what the questions of tasks activated.

    The activated ratio is hidden units that tokens activated / (tokens x MoE layers x hidden units of all experts).
    Its intervals, and those of differences, resample questions.

    Args:
        questions: counts of each question, by task.
        model: spec of a model with experts.

    Returns:
        tasks: task questions tokens activated_ratio low high experts_per_token.
        task_differences: task other difference low high p p_holm, one row for each pair of tasks: the ratio of `task`
            minus that of `other`, 95% for each alone; `p_holm` is corrected for all pairs.
    """
    assert model.moe is not None
    num_layers, all_units = len(model.moe_layers), sum(model.moe.expert_widths)
    ratios, tasks = {}, []
    for task, counts in questions.items():
        denominators = [count.tokens * num_layers * all_units for count in counts]
        ratios[task] = estimate_ratio([count.units for count in counts], denominators)
        low, high = ratios[task].compute_interval()
        tokens = sum(count.tokens for count in counts)
        tasks.append(
            {
                "task": task,
                "questions": len(counts),
                "tokens": tokens,
                "activated_ratio": ratios[task].value,
                "low": low,
                "high": high,
                "experts_per_token": sum(count.experts for count in counts) / tokens / num_layers,
            }
        )
    return {"tasks": tasks, "task_differences": _list_differences(ratios)}


def _list_differences(ratios: dict[str, RatioEstimate]) -> list[Row]:
    rows: list[Row] = []
    tails = {}
    for pair in itertools.combinations(ratios, 2):
        difference = compare_ratios(ratios[pair[0]], ratios[pair[1]])
        if difference.tail is not None:
            tails["\n".join(pair)] = difference.tail
        rows.append(
            {
                "task": pair[0],
                "other": pair[1],
                "difference": difference.value,
                "low": difference.low,
                "high": difference.high,
                "p": difference.tail,
            }
        )
    adjusted = adjust_holm(tails)
    return [{**row, "p_holm": adjusted.get(f"{row['task']}\n{row['other']}")} for row in rows]


def iterate_question_texts(selection: TaskSelection, limit: int | None = None) -> Iterator[tuple[str, str]]:
    """Yield (task, text) of each question, for analyses that read documents: its context and then its right answer.

    The text is what the model reads when it scores that answer, without examples of other questions. Of several right
    answers it has the first; a question whose right answer is not told, or that has none, is its context alone. Tasks
    of whole texts give these.

    Args:
        selection: what `hmoe.evaluate.tasks.select_tasks` made of names.
        limit: number of questions of each task, or member of a group, from the first on; None: all.

    Raises:
        DataError: if a task cannot be read.
    """
    for name in selection.names:
        for task, doc, requests in _iterate_questions(selection, name, limit):
            yield name, _join_right_answer(task, doc, requests)


def _iterate_questions(
    selection: TaskSelection, name: str, limit: int | None
) -> Iterator[tuple[Any, Any, list[Any]]]:
    """Yield (task object, document, its requests) of each question of a task, or of all members of a group."""
    with silence_harness():
        tasks = selection.load(name)["tasks"]
        for task in tasks.values():
            task.set_config(key="num_fewshot", value=0)
            task.build_all_requests(limit=limit)
    for task in tasks.values():
        for _, group in itertools.groupby(task.instances, key=lambda request: request.doc_id):
            requests = list(group)
            yield task, requests[0].doc, requests


def _join_right_answer(task: Any, doc: Any, requests: list[Any]) -> str:
    """Return the context of a question, and its right answer where it is told."""
    if task.OUTPUT_TYPE == "generate_until":
        return str(requests[0].args[0])
    if task.OUTPUT_TYPE != "multiple_choice":  # of one request, whose texts are those that are scored
        return "".join(requests[0].args)
    # Choices that are contexts, as in Winogrande, have one continuation, and the text names the right one.
    right = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    choices = list(task.doc_to_choice(doc))
    right = right[0] if isinstance(right, list) and right else right
    place = choices.index(right) if isinstance(right, str) and right in choices else right
    if isinstance(place, int) and 0 <= place < len(choices):
        return "".join(requests[place].args)
    return str(requests[0].args[0]) if not task.multiple_input else ""
