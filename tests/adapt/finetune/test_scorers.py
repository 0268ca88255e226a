"""Which of several windows' answers counts, and how probable a generated text is."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import PreTrainedTokenizerFast, SwitchTransformersForConditionalGeneration

from hmoe.adapt.finetune.example import TaskExample
from hmoe.adapt.finetune.scorers import AnswerScorer, sum_generated_log_probs
from hmoe.adapt.finetune.tasks import get_finetune_task


def test_of_several_windows_the_most_probable_answer_counts(
    switch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, fast = get_finetune_task("squad"), PreTrainedTokenizerFast.from_pretrained(switch)
    asked = [
        TaskExample("question: who ? context: " + "it was me . " * 200, ("me",)),
        TaskExample("question: a", ("bad",)),
    ]
    score = AnswerScorer(task, asked, fast, task.settings)
    assert [index for index, _ in score.windows].count(0) > 2
    answers = [(0, (-5.0, "it")), (0, (-1.0, "me")), (1, (-9.0, "bad")), (0, (-3.0, "was"))]
    monkeypatch.setattr(score, "_generate_answers", lambda model: iter(answers))
    assert score(None) == {"f1": 100, "exact_match": 100}


def test_log_probabilities_are_summed_to_the_end_of_a_text(switch: Path) -> None:
    model = SwitchTransformersForConditionalGeneration.from_pretrained(switch)
    scores = tuple(torch.randn(2, model.config.vocab_size) for _ in range(3))
    sequences = torch.tensor([[0, 5, 1, 0], [0, 6, 7, 1]])  # the first one ended a token earlier
    sums = sum_generated_log_probs(model, SimpleNamespace(sequences=sequences, scores=scores))
    each = torch.stack(scores).log_softmax(-1)
    expected = [float(each[0, 0, 5] + each[1, 0, 1]), float(each[0, 1, 6] + each[1, 1, 7] + each[2, 1, 1])]
    assert sums == pytest.approx(expected, rel=1e-5)
