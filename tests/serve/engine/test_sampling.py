import pytest
import torch

from hmoe.model.generate import Sampling
from hmoe.serve.engine.sampling import adjust_logits, draw_tokens, gather_logprobs
from hmoe.serve.engine.types import SequenceTask


def slow(logits: list[float], how: Sampling, uniform: float) -> int:
    """One row, written out: sort by falling probability, then id; keep top_k; of those, top_p; cumulate."""
    if how.temperature == 0:
        return logits.index(max(logits))
    weights = (torch.tensor(logits, dtype=torch.float64) / how.temperature).softmax(0).tolist()
    ids = list(range(len(logits)))
    if how.top_k or how.top_p < 1:
        ids.sort(key=lambda i: (-logits[i], i))
        ids = ids[: how.top_k or None]
        whole, before, kept = sum(weights[i] for i in ids), 0.0, []
        for i in ids:
            if before < how.top_p * whole:
                kept.append(i)
            before += weights[i]
        ids = kept
    goal, passed = uniform * sum(weights[i] for i in ids), 0.0
    for i in ids:
        passed += weights[i]
        if passed > goal:
            return i
    return ids[-1]


HOWS = [Sampling(0), Sampling(1.0), Sampling(0.5), Sampling(1.0, 7), Sampling(2.0, 300), Sampling(1.0, 0, 0.893),
        Sampling(1.0, 0, 0.053), Sampling(3.0, 0, 0.971), Sampling(0.7, 40, 0.787), Sampling(1.0, 5000, 0.527),
        Sampling(1.0, 1)]  # fmt: skip


@pytest.mark.parametrize("vocab", [20, 2000])
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("ties", [False, True])
def test_draws_are_those_written_out_whatever_the_other_rows_are(
    vocab: int, scale: float, ties: bool
) -> None:
    """Flat and peaked distributions: with few tokens kept, and with so many that the vocabulary is sorted.

    No top_p is a sum of equal shares, where rounding decides.
    """
    hows = [how for how in HOWS for _ in range(5)]
    logits_MV = torch.randn(len(hows), vocab) * scale
    if ties:  # as bfloat16 has many
        logits_MV = logits_MV.mul(4).round().div(4)
    uniforms = torch.rand(len(hows), dtype=torch.float64).tolist()
    together = draw_tokens(logits_MV, hows, uniforms)
    for logits_V, how, uniform, token in zip(logits_MV, hows, uniforms, together, strict=True):
        assert draw_tokens(logits_V[None], [how], [uniform]) == [token]
        assert slow(logits_V.tolist(), how, uniform) == token


def test_the_largest_uniform_number_draws_a_token_that_is_kept() -> None:
    logits_MV = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    last = 1 - 2**-53
    assert draw_tokens(logits_MV, [Sampling(1.0, 2)], [last]) == [3]
    assert draw_tokens(logits_MV, [Sampling(1.0, 0, 0.5)], [last]) == [1]
    assert draw_tokens(logits_MV, [Sampling(1.0)], [0.0]) == [0]


def test_biases_and_penalties_add_up() -> None:
    logits_V = torch.zeros(5)
    ask = SequenceTask((0,), bias={1: 2.0, 2: -1.0}, frequency_penalty=0.5, presence_penalty=0.25)
    adjust_logits(logits_V, ask, {2: 3, 4: 1})
    assert logits_V.tolist() == [0, 2, -1 - 3 * 0.5 - 0.25, 0, -0.5 - 0.25]


def test_told_logprobs_are_of_the_whole_row() -> None:
    logits_MV = torch.randn(3, 9)
    of_targets, ids, tops = gather_logprobs(logits_MV, [4, 0, 8], 2)
    expected_MV = logits_MV.double().log_softmax(1)
    for row, target in enumerate([4, 0, 8]):
        assert of_targets[row] == pytest.approx(float(expected_MV[row, target]), abs=1e-6)
        best = expected_MV[row].topk(2)
        assert ids[row] == best.indices.tolist()
        assert tops[row] == pytest.approx(best.values.tolist(), abs=1e-6)
