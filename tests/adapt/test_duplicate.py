"""GPT-2 with duplicated MLPs: the same function at first; its noisy router against the paper's equations."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hmoe import ConfigError, Hyper
from hmoe.adapt.duplicate import compute_noisy_balance, duplicate_mlps, record_noisy_routers
from hmoe.hub import attach_hyper


def small() -> GPT2LMHeadModel:
    torch.manual_seed(1)
    return GPT2LMHeadModel(GPT2Config(vocab_size=30, n_embd=16, n_layer=2, n_head=2, n_positions=32)).eval()


@pytest.mark.parametrize("k", [1, 3])
def test_duplicated_mlps_are_at_first_the_same_function(k: int) -> None:
    model, tokens = small(), torch.randint(0, 30, (2, 9))
    before = model(tokens).logits
    duplicate_mlps(model, experts=4, k=k)
    torch.testing.assert_close(model(tokens).logits, before, rtol=1e-5, atol=1e-6)
    model.train()
    torch.manual_seed(0)
    with record_noisy_routers(model) as routers:
        model(tokens)
    assert len(routers) == 2
    assert len(set(routers[0][2].flatten().tolist())) > 1  # noise spreads the tokens
    for name, message in (("again", "duplicated already"), ("k", "k = 4, must be from 1 to below")):
        with pytest.raises(ConfigError, match=message):
            duplicate_mlps(model if name == "again" else small(), experts=4, k=4 if name == "k" else 1)


def test_the_noisy_router_against_its_equations() -> None:
    """Shazeer et al. 2017, eq 3-5 and 8-11, one token and expert at a time."""
    model = duplicate_mlps(small(), experts=5, k=2).double().train()
    router = model.transformer.h[0].mlp.router
    torch.nn.init.normal_(router.weight)
    torch.nn.init.normal_(router.noise)
    x = torch.randn(7, 16, dtype=torch.float64)
    torch.manual_seed(5)
    load, gates, experts = (value.detach() for value in router(x))
    weight, spread = router.weight.detach(), router.noise.detach()
    torch.manual_seed(5)
    noise = torch.randn(7, 5, dtype=torch.float64)
    normal = torch.distributions.Normal(0.0, 1.0)
    gate_sums = torch.zeros(5, dtype=torch.float64)
    for t in range(7):
        clean = [float(weight[i] @ x[t]) for i in range(5)]
        std = [float(torch.log1p(torch.exp(spread[i] @ x[t]))) + 1e-2 for i in range(5)]
        noisy = [c + n * s for c, n, s in zip(clean, noise[t].tolist(), std, strict=True)]
        order = sorted(range(5), key=lambda i: -noisy[i])
        assert experts[t].tolist() == order[:2]
        weights = [float(torch.tensor(noisy).double().softmax(0)[i]) for i in order[:2]]
        assert gates[t].tolist() == pytest.approx([w / sum(weights) for w in weights])
        for i in range(5):
            others = sorted((noisy[j] for j in range(5) if j != i), reverse=True)
            expected = float(normal.cdf(torch.tensor((clean[i] - others[1]) / std[i], dtype=torch.float64)))
            assert float(load[t, i]) == pytest.approx(expected, abs=1e-9)
        for w, i in zip(weights, order[:2], strict=True):
            gate_sums[i] += w / sum(weights)
    expected = sum((v.var() / v.mean() ** 2).item() for v in (gate_sums, load.sum(0)))
    assert compute_noisy_balance(load, gates, experts).item() == pytest.approx(expected, rel=1e-5)


def test_hyperexperts_on_duplicated_mlps_start_on_the_same_function() -> None:
    model, tokens = duplicate_mlps(small()), torch.randint(0, 30, (2, 9))
    before = model(tokens).logits
    attach_hyper(model, Hyper(dim=4, init="zero"))
    assert torch.equal(model(tokens).logits, before)
