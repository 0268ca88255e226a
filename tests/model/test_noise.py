"""Random numbers: a function of their seed, spread evenly, by the published generator."""

import pytest
import torch

from hmoe.model.noise import _GAMMA, _mix_bits, draw_seeded_uniform


def test_noise_is_a_function_of_its_seed() -> None:
    first = draw_seeded_uniform(7, (300, 40), torch.device("cpu"))
    assert torch.equal(first, draw_seeded_uniform(torch.tensor(7), (300, 40), torch.device("cpu")))
    assert not torch.equal(first, draw_seeded_uniform(8, (300, 40), torch.device("cpu")))
    assert draw_seeded_uniform(2**80, (3,), torch.device("cpu")).shape == (3,)
    assert 0 < first.min() < 0.001
    assert 0.999 < first.max() < 1
    assert first.mean().item() == pytest.approx(0.5, abs=0.01)
    assert first.var().item() == pytest.approx(1 / 12, abs=0.002)
    pair = torch.stack([first.flatten()[1:], first.flatten()[:-1]])
    assert abs(torch.corrcoef(pair)[0, 1].item()) < 0.03
    assert len(first.unique()) == first.numel()


def test_splitmix64_is_the_published_one() -> None:
    """Its first output for state 0 is 0xE220A8397B1DCDAF."""
    assert int(_mix_bits(torch.tensor([_GAMMA]))) % 2**64 == 0xE220A8397B1DCDAF
