"""The expected width, the own loss that the published results train with, against a slow loop, with its gradients."""

from pathlib import Path

import pytest
import torch

import hmoe
from hmoe.config.recipes import read_recipe
from hmoe.model.router import route_tokens
from hmoe.model.statistics import RouterStatistics, measure_router, measure_routers
from hmoe.runs.control import explain_control, make_uniform_control
from hmoe.sweep.ablations import build_ablation_plan
from hmoe.sweep.families import list_families
from tests import oracles
from tests.model.own_losses import measure_own_loss
from tests.runs.test_comparison import write_run

FILE = Path(__file__).parents[2] / "docs" / "results" / "expected_width.py"
CASES = {"unequal": (3, 5, 8, 16), "pairs": (4, 4, 8, 8), "zero-computation experts": (3, 5, 0, 0)}
SPECS: list[hmoe.TopK | hmoe.TopP] = [hmoe.TopK(2), hmoe.TopP(0.6), hmoe.TopK(2, scores="sigmoid")]


def draw(tokens: int) -> torch.Tensor:
    return (2 * torch.randn(tokens, 4, dtype=torch.float64)).requires_grad_()


def measure(statistics: RouterStatistics, widths: tuple[int, ...]) -> torch.Tensor:
    return measure_own_loss(FILE.read_text(), "expected_width", statistics, widths)


@pytest.mark.parametrize("widths", CASES.values(), ids=CASES)
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("tokens", [17, 1])
def test_loss_and_gradient_are_those_of_the_loop(
    widths: tuple[int, ...], spec: hmoe.TopK | hmoe.TopP, tokens: int
) -> None:
    routing = route_tokens(draw(tokens), spec)
    loss = measure(measure_router(routing), widths)
    expected = oracles.expected_width(routing.probs_TE, list(widths))
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=1e-14)
    gradients = [torch.autograd.grad(v, routing.logits_TE, retain_graph=True)[0] for v in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-15)


def test_a_uniform_router_has_one_and_one_expert_its_width() -> None:
    for logits, value in (
        ([0.0] * 4, 1.0),
        ([-900.0, -900.0, 900.0, -900.0], 8 / 8),
        ([900.0, 0, 0, 0], 3 / 8),
    ):
        routing = route_tokens(torch.tensor([logits] * 3, dtype=torch.float64), hmoe.TopK(1))
        assert measure(measure_router(routing), CASES["unequal"]).item() == pytest.approx(value)


@pytest.fixture
def extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HMOE_EXTENSIONS", str(FILE))


WORDS = [
    "model.moe.losses={expected_width: 0.03}",
    "model.moe.parameter_penalty=0",
    "model.moe.load_balance=0.01",
]


@pytest.mark.usefixtures("extension")
def test_equal_experts_refuse_it_and_a_control_is_trained_without(tmp_path: Path) -> None:
    with pytest.raises(hmoe.ConfigError, match="expected_width has no effect with equally wide experts"):
        read_recipe("tiny-equal", [WORDS[0]])
    zeros = read_recipe("tiny-equal", [WORDS[0], 'model.moe.zero={"null": 1}'])[1]
    assert zeros.model.moe is not None
    control, summary = make_uniform_control(write_run(tmp_path / "run", "tiny", 2.0, *WORDS, width=201.0))
    assert control.model.moe is not None
    assert control.model.moe.losses == {}
    assert control.model.moe.load_balance == 0.01
    assert "Instead of losses {'expected_width': 0.03} it has losses {}." in explain_control(summary, control)


@pytest.mark.usefixtures("extension")
def test_a_control_of_a_run_with_it_alone_is_balanced(tmp_path: Path) -> None:
    words = [*WORDS[:2], "model.moe.load_balance=0", "model.moe.statistics=batch"]
    control, _ = make_uniform_control(write_run(tmp_path / "run", "tiny", 2.0, *words, width=201.0))
    assert control.model.moe is not None
    assert control.model.moe.load_balance == 0.01


@pytest.mark.usefixtures("extension")
def test_ablations_train_equal_experts_without_it_and_no_loss_is_none(tmp_path: Path) -> None:
    recipe = tmp_path / "own.yaml"
    recipe.write_text("base: tiny\nmodel: {moe: {losses: {expected_width: 0.03}, parameter_penalty: 0.0}}\n")
    for what, without in (("strategies", "equal"), ("ratio", "ratio=1"), ("losses", "none")):
        plan = build_ablation_plan(what, str(recipe), [0])
        losses = {group.name: plan.read_recipe(group, 0).model.moe.losses for group in plan.groups}  # type: ignore[union-attr]
        assert losses[without] == {"expected_width": 0.0}
        kept = [name for name, own in losses.items() if own == {"expected_width": 0.03}]
        assert kept == ([] if what == "losses" else [name for name in losses if name != without])


@pytest.mark.usefixtures("extension")
def test_equal_families_of_a_recipe_are_trained_without() -> None:
    config = read_recipe("tiny", [*WORDS, "train.flops=1e12", "train.steps=null"])[1]
    families = {family.name: family for family in list_families(config)}
    for name in ("equal-topk", "unequal-topk"):
        moe = read_recipe("tiny", [*WORDS, *families[name].overrides])[1].model.moe
        assert moe is not None
        assert moe.losses == {"expected_width": 0.0 if name == "equal-topk" else 0.03}
        assert moe.parameter_penalty == 0  # it takes the penalty's place


def test_without_tokens_it_is_zero_and_layers_are_apart() -> None:
    widths = CASES["unequal"]
    assert measure(measure_router(route_tokens(draw(0), SPECS[0])), widths).item() == 0
    routings = [route_tokens(draw(9), spec) for spec in SPECS]
    apart = [measure(measure_router(routing), widths) for routing in routings]
    torch.testing.assert_close(measure(measure_routers(routings), widths), torch.stack(apart))
