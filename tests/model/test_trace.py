"""The trace of a model against the whole decoder in slow loops, and sums over routings against traces."""

import inspect
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch.utils.hooks import RemovableHandle

import hmoe
from hmoe import ConfigError
from hmoe.config.recipes import check_model
from hmoe.model.moe import MoE
from hmoe.model.trace import average_activated, count_activated, sum_activated_units
from hmoe.model.transformer import Transformer, build_transformer
from tests import oracles

WIDTHS = [5, 9, 4, 7]
ZERO = {"null": 1, "copy": 1, "constant": 2}
ROUTERS: dict[str, dict[str, Any]] = {
    "top-k": {"name": "top_k", "k": 2},
    "top-1, raw": {"name": "top_k", "k": 1, "renormalize": False},
    "all": {"name": "top_k", "k": 4},
    "top-p": {"name": "top_p", "p": 0.6},
    "top-p, raw": {"name": "top_p", "p": 0.3, "renormalize": False},
    "top-p, p = 1": {"name": "top_p", "p": 1.0},
    "capacity": {"name": "top_k", "k": 2, "capacity_factor": 0.7},
    "capacity by score": {"name": "top_k", "k": 2, "capacity_factor": 0.7, "priority": "score"},
    "rectified": {"name": "top_k", "k": 1, "capacity_factor": 0.6, "rectify": "ir"},
    "rectified and filled": {
        "name": "top_k",
        "k": 2,
        "capacity_factor": 0.6,
        "rectify": "fr+ir",
        "when": "fewer",
    },
    "expert choice": {"name": "expert_choice", "capacity_factor": 1.3},
}
MODELS = {name: {"router": router} for name, router in ROUTERS.items()}
MODELS["zero-computation"] = {"router": ROUTERS["top-k"], "zero": ZERO}
MODELS["zero-computation, top-p"] = {"router": ROUTERS["top-p"], "zero": ZERO}
MODELS["zero-computation, capacity"] = {"router": ROUTERS["capacity"], "zero": ZERO}
MODELS["shared"] = {"router": ROUTERS["top-p"], "shared": 3}
Gates = list[dict[int, torch.Tensor]]  # of each token: expert -> gate


def make(dense_layers: Sequence[int] = (1,), **moe: Any) -> Transformer:
    """Three layers, of which the second is dense; logits far enough apart for choices that differ."""
    moe = {"widths": WIDTHS, "dense_layers": list(dense_layers), **moe}
    model = build_transformer(
        check_model(dict(dim=12, layers=3, heads=3, vocab=23, ffn=11, moe=moe)), 0, torch.float64
    )
    with torch.no_grad():
        for block in model.blocks:
            if isinstance(block.ffn, MoE):
                block.ffn.router.weight.add_(0.6 * torch.randn_like(block.ffn.router.weight))
    return model


def slow_gates(
    logits_TE: torch.Tensor, spec: Any, widths: Sequence[int], off: set[int], p: float | None
) -> Gates:
    """Who serves whom in one layer: probabilities over all experts, a choice among those that are not switched off."""
    probs_TE = torch.stack([oracles.probabilities(row) for row in logits_TE])
    num_tokens, num_experts = probs_TE.shape
    left = [i for i in range(num_experts) if i not in off]
    if spec.name == "expert_choice":
        limit = math.ceil(spec.capacity_factor * num_tokens / num_experts - 1e-9)
        taken = oracles.expert_choice(probs_TE, [limit] * num_experts)
        return [{i: probs_TE[t, i] for i in left if t in taken[i]} for t in range(num_tokens)]
    ranked = [sorted(left, key=lambda i: (-row[i].item(), i)) for row in logits_TE]
    if spec.name == "top_p":
        chosen = []
        for t in range(num_tokens):
            sums = [sum(float(probs_TE[t, i]) for i in ranked[t][:place]) for place in range(len(left))]
            chosen.append(
                [i for i, total in zip(ranked[t], sums, strict=True) if total < (p or spec.p) or total == 0]
            )
    elif spec.capacity_factor is None:
        chosen = [row[: spec.k] for row in ranked]
    else:
        return slow_capacity(probs_TE, ranked, spec, widths, left)
    gates = []
    for t, experts in enumerate(chosen):
        total = sum(float(probs_TE[t, i]) for i in experts) if spec.renormalize else 1.0
        gates.append({i: probs_TE[t, i] / total for i in experts})
    return gates


def slow_capacity(
    probs_TE: torch.Tensor, ranked: list[list[int]], spec: Any, widths: Sequence[int], left: Sequence[int]
) -> Gates:
    """GShard's queues, and experts of a token's own rank where a token was refused (one expert per rank here)."""
    num_tokens, num_experts = probs_TE.shape
    computing = sum(width > 0 for width in widths)
    limits = oracles.capacities(spec.capacity_factor, spec.k, num_tokens, [1] * num_experts)
    limits = [limit if width else 10**9 for limit, width in zip(limits, widths, strict=True)]
    choices = [row[: spec.k + ("fr" in (spec.rectify or ""))] for row in ranked]
    largest_TE = torch.stack(
        [probs_TE[:, i] if i in left else probs_TE[:, i] * 0 for i in range(num_experts)], 1
    )
    kept = oracles.with_capacity(largest_TE, choices, limits, spec.priority == "score")
    gates = []
    for t in range(num_tokens):
        accepted = [i for i, taken in zip(choices[t], kept[t], strict=True) if taken]
        weights = {i: probs_TE[t, i] for i in accepted}
        own = t * computing // num_tokens
        needy = {"all": not accepted, "fewer": len(accepted) < spec.k}[spec.when]
        if "ir" in (spec.rectify or "") and needy and own in left:
            stands_in = probs_TE[t, own] * (spec.k - len(accepted))
            weights[own] = weights.get(own, 0) + stands_in
        total = sum(float(weight) for weight in weights.values())
        gates.append({i: weight / total for i, weight in weights.items()})
    return gates


def slow_expert(ffn: MoE, i: int, x_D: torch.Tensor) -> torch.Tensor:
    if i < len(ffn.widths):
        return oracles.expert(x_D, ffn.expert(i))
    assert ffn.zero is not None
    spec = ffn.zero.spec
    place = i - len(ffn.widths)
    kind = (["null"] * spec.null + ["copy"] * spec.copy + ["constant"] * spec.constant)[place]
    if kind != "constant":
        return oracles.zero_expert(x_D, kind)
    assert ffn.zero.value is not None
    assert ffn.zero.mix is not None
    place -= spec.null + spec.copy
    return oracles.zero_expert(x_D, kind, ffn.zero.value[place], ffn.zero.mix[place])


def slow_trace(
    model: Transformer, tokens: list[list[int]], without: Mapping[int, set[int]], p: float | None
) -> tuple[list[Gates], list[torch.Tensor], list[float]]:
    """(gates, probabilities) of every MoE layer and the nll of every token; sequences of a batch share capacities."""
    c = model.config
    sequences = [torch.stack([model.embed.weight[token] for token in sequence]) for sequence in tokens]
    layers: list[Gates] = []
    probs: list[torch.Tensor] = []

    def normed(x_TD: torch.Tensor, norm: Any) -> torch.Tensor:
        return torch.stack([oracles.rms_norm(row, norm.weight, c.norm_eps) for row in x_TD])

    for block in model.blocks:
        weights = {name: getattr(block.attention, f"{name}_proj").weight for name in "qkvo"}
        for index, x_LD in enumerate(sequences):
            inputs = normed(x_LD, block.attention_norm)
            attended = oracles.attention(inputs, weights, c.heads, c.num_kv_heads, c.rope_theta, c.norm_eps)
            sequences[index] = x_LD + attended
        x_TD = torch.cat(sequences)
        rows = normed(x_TD, block.ffn_norm)
        ffn = block.ffn
        if isinstance(ffn, MoE):
            off = without.get(len(layers), set())
            logits_TE = torch.stack([ffn.router.weight @ row for row in rows])
            gates = slow_gates(logits_TE, ffn.router.spec, ffn.routed_widths, off, p)
            outputs = []
            for row, of_token in zip(rows, gates, strict=True):
                y_D = sum(
                    (gate * slow_expert(ffn, i, row) for i, gate in of_token.items()), torch.zeros_like(row)
                )
                if ffn.shared is not None:
                    shared = (ffn.shared.w_gate, ffn.shared.w_up, ffn.shared.w_down.T)
                    y_D = y_D + oracles.expert(row, shared)
                outputs.append(y_D)
            layers.append(gates)
            probs_TE = torch.stack([oracles.probabilities(row) for row in logits_TE])
            probs_TE[:, sorted(off)] = 0
            probs.append(probs_TE)
        else:
            outputs = [oracles.expert(row, (ffn.w_gate, ffn.w_up, ffn.w_down.T)) for row in rows]
        sequences = list((x_TD + torch.stack(outputs)).split([len(sequence) for sequence in tokens]))
    nlls: list[float] = []
    for x_LD, sequence in zip(sequences, tokens, strict=True):
        logits = normed(x_LD, model.norm) @ model.head_weight.T
        pairs = zip(logits, sequence[1:], strict=False)
        nlls += [math.nan, *(-math.log(float(oracles.probabilities(row)[token])) for row, token in pairs)]
    return layers, probs, nlls


def check(
    model: Transformer, tokens: list[list[int]], without: Any = (), p: float | None = None
) -> hmoe.RoutingTrace:
    """Compare a trace with the loops, pair by pair."""
    num_layers = len(model.config.moe_layers)
    by_layer = without if isinstance(without, Mapping) else {layer: without for layer in range(num_layers)}
    with torch.no_grad():
        layers, probs, nlls = slow_trace(model, tokens, {z: set(off) for z, off in by_layer.items()}, p)
    trace = hmoe.trace(model, torch.tensor(tokens), top_p_experts=p, without=without)
    assert trace.tokens_T.tolist() == [token for sequence in tokens for token in sequence]
    assert trace.blocks == model.config.moe_layers
    torch.testing.assert_close(
        trace.nll_T, torch.tensor(nlls, dtype=torch.float64), rtol=1e-9, atol=0, equal_nan=True
    )
    expected = [
        (layer, i, t, float(of_token[i]))
        for layer, gates in enumerate(layers)
        for i in range(len(trace.widths))
        for t, of_token in enumerate(gates)
        if i in of_token
    ]
    columns = (trace.layer_N, trace.expert_N, trace.token_N)
    assert [list(column) for column in zip(*(c.tolist() for c in columns), strict=True)] == [
        list(pair[:3]) for pair in expected
    ]
    torch.testing.assert_close(
        trace.gate_N.double(),
        torch.tensor([pair[3] for pair in expected], dtype=torch.float64),
        rtol=1e-9,
        atol=0,
    )
    for layer in range(num_layers):
        torch.testing.assert_close(trace.probs_ZTE[layer], probs[layer], rtol=1e-9, atol=0)
        for t, of_token in enumerate(layers[layer]):
            assert trace.width_ZT[layer, t] == sum(trace.widths[i] for i in of_token)
            assert trace.num_experts_ZT[layer, t] == len(of_token)
            assert set(trace.chosen_ZTE[layer, t].nonzero().flatten().tolist()) == set(of_token)
            assert trace.gate_ZTE[layer, t].sum() == pytest.approx(sum(map(float, of_token.values())))
        for i in range(len(trace.widths)):
            assert trace.num_tokens_ZE[layer, i] == sum(i in of_token for of_token in layers[layer])
    return trace


TOKENS = [[3, 1, 22, 0, 5], [9, 22, 1, 1, 4]]


@pytest.mark.parametrize("name", list(MODELS))
def test_a_trace_is_that_of_slow_loops(name: str) -> None:
    model = make(**MODELS[name])
    check(model, TOKENS)
    check(model, [[11]])


@pytest.mark.parametrize("name", list(MODELS))
def test_without_some_experts_the_others_keep_their_probabilities(name: str) -> None:
    model = make(**MODELS[name])
    whole = check(model, TOKENS)
    traces = [check(model, TOKENS, without=off) for off in ([1], {1: [0, 2]}, {0: [3], 1: [1, 0]})]
    assert any(not torch.equal(whole.nll_T[1:5], trace.nll_T[1:5]) for trace in traces)
    assert torch.equal(check(model, TOKENS).gate_N, whole.gate_N)  # nothing is left switched off


@pytest.mark.parametrize("name", ["top-k", "top-p", "all", "expert choice", "zero-computation"])
def test_fewer_experts_than_a_token_asks_for(name: str) -> None:
    """What is left serves alone; of a layer without any nothing is added."""
    model = make(**MODELS[name])
    num_experts = len(model.config.moe.routed_widths)  # type: ignore[union-attr]
    single = check(model, TOKENS, without=range(1, num_experts))
    assert single.num_experts_ZT.max() == 1
    none = check(model, TOKENS, without={0: range(num_experts)})
    assert none.num_experts_ZT[0].max() == 0
    assert none.num_experts_ZT[1].max() > 0


@pytest.mark.parametrize("p", [0.05, 0.45, 0.999, 1.0])
@pytest.mark.parametrize("name", ["top-p", "top-p, raw", "top-p, p = 1", "zero-computation, top-p"])
def test_another_threshold(name: str, p: float) -> None:
    trace = check(make(**MODELS[name]), TOKENS, p=p)
    if p == 1:
        assert trace.chosen_ZTE.all()
    check(make(**MODELS[name]), TOKENS, without={0: [2]}, p=p)


def test_balanced_and_grouped_routers_without_an_expert() -> None:
    """A bias cannot bring an expert back that is switched off; a group's score is that of its experts that are left."""
    router = {
        "name": "top_k",
        "k": 2,
        "scores": "sigmoid",
        "groups": 2,
        "keep_groups": 1,
        "bias_rate": 0.1,
        "gate_scale": 2.5,
    }
    model = make(router=router)
    for block in model.blocks:
        if isinstance(block.ffn, MoE):
            block.ffn.router.bias_E.data = torch.tensor([0.9, 0.0, 0.1, 0.0])
    trace = hmoe.trace(model, TOKENS[0], without=[0])
    assert not trace.chosen_ZTE[:, :, 0].any()
    assert (trace.num_experts_ZT == 1).any()  # of the pair of which one is off
    assert torch.allclose(trace.gate_ZTE.sum(2), torch.tensor(2.5, dtype=torch.float64))


def test_a_dense_model_has_a_likelihood_and_no_layers() -> None:
    model = build_transformer(
        check_model(dict(dim=12, layers=2, heads=3, vocab=23, ffn=11)), 0, torch.float64
    )
    for tokens in (TOKENS, [[4]]):
        trace = check(model, tokens)
        num_tokens = len(tokens) * len(tokens[0])
        assert trace.probs_ZTE.shape == (0, num_tokens, 0)
        assert trace.width_ZT.shape == trace.num_experts_ZT.shape == (0, num_tokens)
        assert trace.num_tokens_ZE.shape == (0, 0)
    with pytest.raises(ConfigError, match="without: the model is dense"):
        hmoe.trace(model, [1], without=[0])
    with pytest.raises(ConfigError, match="top_p_experts: the router of this model is not top-p"):
        hmoe.trace(model, [1], top_p_experts=0.5)


def test_the_signature_is_that_of_the_public_surface() -> None:
    assert list(inspect.signature(hmoe.trace).parameters) == ["model", "tokens", "top_p_experts", "without"]
    assert isinstance(hmoe.trace(make(router=ROUTERS["top-k"]), [1]), hmoe.RoutingTrace)


def test_a_trace_leaves_the_model_as_it_was() -> None:
    """Noise is off while it reads; parts that were frozen in evaluation mode stay in it."""
    model = make(router=ROUTERS["top-k"] | {"jitter": 0.3}).train()
    model.blocks[0].eval()
    first, again = (hmoe.trace(model, TOKENS[0], without=[1]) for _ in range(2))
    assert torch.equal(first.gate_N, again.gate_N)
    assert model.training
    assert model.blocks[2].ffn.router.training
    assert not model.blocks[0].ffn.router.training
    assert not any(module._forward_hooks for module in model.modules())
    model.embed.weight.data.fill_(torch.nan)
    with pytest.raises(hmoe.NonFiniteError):
        hmoe.trace(model, TOKENS[0], without=[1])
    assert not any(module._forward_hooks for module in model.modules())


def test_tokens_can_be_a_list_or_a_tensor_of_one_sequence() -> None:
    model = make(router=ROUTERS["top-p"])
    expected = hmoe.trace(model, torch.tensor(TOKENS[:1]))
    for tokens in (TOKENS[0], tuple(TOKENS[0]), torch.tensor(TOKENS[0], dtype=torch.int32)):
        trace = hmoe.trace(model, tokens)
        assert torch.equal(trace.gate_N, expected.gate_N)
        assert torch.equal(trace.nll_T[1:], expected.nll_T[1:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": []}, r"tokens: .*at least one token"),
        ({"tokens": torch.zeros(1, 2, 3, dtype=torch.int64)}, r"tokens: .*must be \(L\) or \(B, L\)"),
        ({"tokens": [1.5]}, "tokens: torch.float32, must be integers"),
        ({"tokens": [0, 23]}, "tokens: ids must be from 0 to 22"),
        ({"tokens": [-1]}, "tokens: ids must be from 0 to 22"),
        ({"top_p_experts": 0.0}, r"top_p_experts = 0.0, must be in \(0, 1\]"),
        ({"top_p_experts": math.nan}, "top_p_experts = nan"),
        ({"top_p_experts": 0.5}, "top_p_experts: the router of this model is not top-p"),
        ({"without": [4]}, "without: expert 4, must be from 0 to 3"),
        ({"without": [-1]}, "without: expert -1, must be from 0 to 3"),
        ({"without": {2: [0]}}, "without: MoE layer 2, must be from 0 to 1"),
    ],
    ids=str,
)
def test_what_the_model_does_not_have(arguments: dict[str, Any], message: str) -> None:
    model = make(router=ROUTERS["top-k"])
    with pytest.raises(ConfigError, match=message):
        hmoe.trace(**{"model": model, "tokens": [1, 2], **arguments})


def test_a_compiled_block_does_not_answer_as_if_nothing_had_been_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make(router=ROUTERS["top-k"])
    unheard = RemovableHandle(OrderedDict())
    monkeypatch.setattr(torch.nn.Module, "register_forward_hook", lambda *_: unheard)
    with pytest.raises(ConfigError, match="no effect on a compiled model"):
        hmoe.trace(model, TOKENS[0], without=[0, 1])


@pytest.mark.parametrize("name", [*MODELS, "dense"])
def test_sums_over_routings_are_those_of_the_trace(name: str) -> None:
    dense = check_model(dict(dim=12, layers=2, heads=3, vocab=23, ffn=11))
    model = build_transformer(dense, 0, torch.float64) if name == "dense" else make(**MODELS[name])
    model.eval()
    with torch.no_grad():
        _, routings = model.hidden(torch.tensor(TOKENS))
    trace = hmoe.trace(model, torch.tensor(TOKENS))
    units_T, experts_T = count_activated(routings, trace.widths, 10)
    assert units_T.dtype == torch.float64
    assert torch.equal(units_T, trace.width_ZT.sum(0))
    assert torch.equal(experts_T, trace.num_experts_ZT.sum(0))
    assert sum_activated_units(routings, trace.widths) == trace.width_ZT.sum()
    if name == "dense":
        assert average_activated(0.0, 10, 0) == 0
    else:
        assert average_activated(float(units_T.sum()), 10, 2) == pytest.approx(float(trace.width_ZT.mean()))
    assert average_activated(0.0, 0, 2) == 0
