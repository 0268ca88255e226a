"""How far outputs are apart, beside how far they would be if tokens were dealt out at random."""

import numpy as np
import pytest
import torch
from scipy import stats

from hmoe.analyze.expert_inputs import LayerInputs, run_expert
from hmoe.analyze.expert_outputs import compare_outputs
from hmoe.analyze.random_experts import RandomExperts
from hmoe.analyze.redundancy import measure_redundancy
from hmoe.analyze.similarity import measure_size_test
from hmoe.statistics.wasserstein import measure_sliced_distance
from tests.analyze.test_redundancy import build_random


def compare(chosen_TE, same=True, seed=0, x_TD=None):
    """Experts of 12 units that are the same or not, on random inputs."""
    randoms = RandomExperts(16, 4, seed)
    first = randoms.draw_expert(12)
    experts = [first, first if same else randoms.draw_expert(12), randoms.draw_expert(20)]
    x_TD = torch.randn(len(chosen_TE), 16, generator=torch.manual_seed(seed)) if x_TD is None else x_TD
    return experts, x_TD, compare_outputs(experts, LayerInputs(x_TD, torch.from_numpy(chosen_TE)), randoms)


def test_the_null_is_the_distance_of_tokens_that_are_dealt_out():
    draw = np.random.default_rng(0)
    chosen_TE = draw.random((300, 3)) < (0.3, 0.5, 0.2)
    experts, x_TD, likeness = compare(chosen_TE, same=False)
    outputs = [run_expert(expert, x_TD).double().numpy() for expert in experts]
    token_N, expert_N = np.nonzero(chosen_TE)
    slow = []
    for _ in range(30):
        dealt_N = draw.permutation(expert_N)
        served = [outputs[e][token_N[dealt_N == e]] for e in range(3)]
        slow.append([measure_sliced_distance(served[a], served[b]) for a, b in ((0, 1), (0, 2), (1, 2))])
    null = likeness.distance_null[[0, 0, 1], [1, 2, 2]]
    spread = np.std(slow, axis=0)
    assert (np.abs(null - np.mean(slow, axis=0)) < 4 * spread / np.sqrt(3)).all()
    # Routing here is random too.
    assert (np.abs(likeness.distance[[0, 0, 1], [1, 2, 2]] - np.mean(slow, axis=0)) < 5 * spread).all()


def test_the_same_function_for_other_tokens_is_beyond_the_null():
    x_TD = torch.randn(400, 16, generator=torch.manual_seed(1))
    by_input = (x_TD[:, 0] > 0).numpy()
    chosen_TE = np.stack([by_input, ~by_input, np.zeros(400, bool)], axis=1)
    _, _, likeness = compare(chosen_TE, x_TD=x_TD)
    assert likeness.cosine[0, 1] == pytest.approx(1)
    assert likeness.distance[0, 1] > 1.5 * likeness.distance_null[0, 1] > 0
    assert np.isnan(likeness.distance_null[0, 2])
    assert np.isnan(likeness.distance[0, 2])


def test_outputs_of_random_experts_have_nothing_in_common():
    _, _, likeness = compare(np.ones((500, 3), bool), same=False)
    assert np.abs(likeness.cosine_null).max() < 0.2
    assert np.abs(likeness.cosine[0, 1]) < 0.5


def count_size_findings(seeds):
    findings = 0
    for seed in seeds:
        rows = measure_redundancy(*build_random(seed), seed=seed)["redundancy"]
        findings += any(
            row["layer"] is None and (row["p"] or 1) <= 0.05
            for row in measure_size_test(rows, "output_distance")
        )
    return findings


def test_random_models_show_no_nearness_in_size():
    assert count_size_findings(range(100, 110)) <= stats.binom.isf(0.001, 10, 0.05)


@pytest.mark.slow
def test_two_hundred_random_models_show_no_nearness_in_size():
    assert count_size_findings(range(200)) <= stats.binom.isf(0.025, 200, 0.05)
