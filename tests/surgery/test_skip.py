"""Dynamic expert skipping (Lu et al. 2024), token by token."""

from typing import Any

import pytest
import torch

import hmoe
from hmoe import ConfigError
from hmoe.config.recipes import check_model
from hmoe.model.transformer import Transformer, build_transformer
from hmoe.surgery.measure import record_ffn_inputs
from hmoe.surgery.skip import apply_skip_shares, measure_skip_shares
from tests import oracles
from tests.surgery.helpers import source

WIDTHS = (5, 16, 3, 24)
DIM = 12


def layer(spec: Any) -> hmoe.MoE:
    moe = hmoe.MoE(DIM, WIDTHS, spec).double()
    torch.nn.init.normal_(moe.router.weight)
    return moe


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
@pytest.mark.parametrize("renormalize", [True, False])
def test_weak_experts_are_left_out_in_evaluation_only(k: int, scores: Any, renormalize: bool) -> None:
    moe = layer(hmoe.TopK(k, skip=0.5, scores=scores, renormalize=renormalize)).eval()
    x = torch.randn(40, DIM, dtype=torch.float64)
    y, routing = moe(x)
    pairs = 0
    for t in range(40):
        logits = moe.router.weight.detach() @ x[t]
        values = oracles.probabilities(logits) if scores == "softmax" else 1 / (1 + torch.exp(-logits))
        chosen = oracles.chosen(logits, k)
        kept = [i for i in chosen if values[i] >= 0.5 * values[chosen[0]]]
        total = sum(values[i] for i in kept) if renormalize else 1.0
        expected = sum(
            (values[i] / total * oracles.expert(x[t], moe.expert(i)) for i in kept), torch.zeros(DIM).double()
        )
        torch.testing.assert_close(y[t].detach(), expected)
        pairs += len(kept)
    assert int(routing.num_tokens_E.sum()) == pairs
    assert 40 < pairs < 40 * k
    assert int(moe.train()(x)[1].num_tokens_E.sum()) == 40 * k


def test_one_graph_and_the_same_numbers_when_compiled() -> None:
    moe = layer(hmoe.TopK(2, skip=0.6)).float().eval()
    x = torch.randn(33, DIM)
    expected = moe(x)[0]
    torch.testing.assert_close(torch.compile(moe, fullgraph=True, backend="aot_eager")(x)[0], expected)


def test_nan_is_no_reason_to_skip() -> None:
    from hmoe.model.router import route_tokens
    from hmoe.model.routing import RouterState

    logits = torch.tensor([[0.0, torch.nan, 2.0], [3.0, 1.0, 0.0]])
    routing = route_tokens(logits, hmoe.TopK(2, skip=0.9), RouterState(training=False))
    assert routing.num_tokens_E.sum() == 3  # two of the first row, whose gates are NaN; one of the second
    assert routing.gate_N.isnan().sum() == 2


def model(**router: Any) -> Transformer:
    moe = {"widths": [8, 24, 16], "router": {"name": "top_k", "k": 2, **router}, "dense_layers": [1]}
    small = build_transformer(
        check_model(dict(dim=16, layers=3, heads=4, vocab=31, ffn=20, moe=moe)), 0, torch.float64
    )
    for block in (small.blocks[0], small.blocks[2]):
        torch.nn.init.normal_(block.ffn.router.weight)  # type: ignore[union-attr, arg-type]
    return small.eval()


def test_the_median_share_of_each_layer_skips_half_of_the_last_choices() -> None:
    trained, tokens = model(), torch.randint(0, 31, (1, 401))
    inputs = record_ffn_inputs(trained, [tokens])
    shares = measure_skip_shares(trained, inputs)
    for share, layer in zip(shares, (0, 2), strict=True):
        ratios = []
        for x in inputs[layer]:
            values = oracles.probabilities(trained.blocks[layer].ffn.router.weight.detach() @ x)  # type: ignore[union-attr, operator]
            best, second = sorted(values.tolist())[:-3:-1]
            ratios.append(second / best)
        assert share == pytest.approx(sorted(ratios)[200])
    skipping = apply_skip_shares(trained, shares)
    with torch.no_grad():  # as it was measured: the last bit decides whether the median token skips
        routings = skipping(tokens)[1]
    assert int(routings[0].num_tokens_E.sum()) == 2 * 401 - 200
    assert trained(tokens)[1][0].num_tokens_E.sum() == 2 * 401
    assert dict(skipping.named_parameters()).keys() == dict(trained.named_parameters()).keys()


def test_what_cannot_skip_is_told() -> None:
    for spec, message in (
        ({"k": 1, "skip": 0.5}, "skip has no effect with k = 1"),
        ({"capacity_factor": 1.0, "skip": 0.5}, "skip has no effect with a capacity"),
        ({"skip": 1.5}, "router.skip = 1.5"),
        ({"skip": 0}, "router.skip = 0 has no effect"),
    ):
        with pytest.raises(ConfigError, match=message):
            hmoe.TopK(**spec)  # type: ignore[arg-type]
    inputs = [torch.zeros(4, 16, dtype=torch.float64)] * 3
    for refused, message in ((model(capacity_factor=1.0), "without a capacity"),
                             (model(skip=0.5), "skips experts already"),
                             (apply_skip_shares(model(), (0.5, 0.5)), "skips experts already")):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            measure_skip_shares(refused, inputs)
    for skips in ({"skip": [0.5, 0.0]}, {"router": {"name": "top_k", "skip": 0.5}}):
        with pytest.raises(ValueError, match=r"hyper: router\.skip"):
            check_model(
                dict(
                    dim=16,
                    layers=2,
                    heads=4,
                    vocab=31,
                    moe={"widths": [8, 8, 8], "hyper": {"dim": 3}, **skips},
                )
            )
    with pytest.raises(ConfigError, match=r"hyper: router\.skip"):
        hmoe.MoE(DIM, WIDTHS, hmoe.TopK(2, skip=0.5), hyper=hmoe.Hyper(dim=3))
    with pytest.raises(ValueError, match="only zeros have no effect"):
        check_model(dict(dim=16, layers=2, heads=4, vocab=31, moe={"widths": [8, 8], "skip": [0, 0]}))
    base = {"widths": [8, 8], "skip": [0.5]}
    with pytest.raises(ValueError, match=r"moe\.skip: 1 numbers, must be one for each of the 2 MoE layers"):
        check_model(dict(dim=16, layers=2, heads=4, vocab=31, moe=base))
    with pytest.raises(
        ValueError, match=r"moe\.skip: the router is top-p 0\.6; cannot leave out weak experts"
    ):
        check_model(dict(dim=16, layers=1, heads=4, vocab=31, moe=base | {"router": {"name": "top_p"}}))


def test_skipping_compares_and_skips_only_experts_that_compute() -> None:
    model = source({"name": "top_k", "k": 3}, zero={"null": 1, "copy": 1})
    text = torch.randint(0, 29, (1, 201))
    inputs = record_ffn_inputs(model, [text])
    shares = measure_skip_shares(model, inputs)
    with torch.no_grad():
        routing = apply_skip_shares(model, shares)(text)[1][0]
    expected: list[set[int]] = []
    ratios = []
    for x in inputs[0]:
        values = oracles.probabilities(model.blocks[0].ffn.router.weight.detach() @ x)  # type: ignore[union-attr, operator]
        chosen = oracles.chosen(model.blocks[0].ffn.router.weight.detach() @ x, 3)  # type: ignore[union-attr, operator]
        computing = [i for i in chosen if i < 4]
        if len(computing) > 1:
            ratios.append(float(min(values[computing]) / max(values[computing])))
        expected.append(
            {i for i in chosen if i >= 4 or values[i] / max(values[computing]) >= shares[0] * (1 - 1e-12)}
        )
    assert shares[0] == pytest.approx(sorted(ratios)[(len(ratios) - 1) // 2])
    chosen_T: list[set[int]] = [set() for _ in expected]
    for token, expert in zip(routing.token_N.tolist(), routing.expert_N.tolist(), strict=True):
        chosen_T[token].add(expert)
    assert chosen_T == expected
    assert 0 < sum(map(len, expected)) < 3 * 201
