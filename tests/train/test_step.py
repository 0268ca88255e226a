import numpy as np
import pytest
import torch

from hmoe.config import recipes
from hmoe.config.counts import estimate_flops_per_token
from hmoe.config.run import RunConfig
from hmoe.data.batches import cut_batch
from hmoe.model.losses import load_balance, parameter_penalty
from hmoe.model.transformer import Transformer, build_transformer, set_check_finite
from hmoe.train.optimizer import build_optimizer
from hmoe.train.step import StepRecord, train_step
from tests.conftest import tiny


def setup(
    *overrides: str, recipe: str = "tiny"
) -> tuple[RunConfig, Transformer, torch.optim.Optimizer, tuple[np.ndarray, np.ndarray]]:
    config = recipes.read_recipe(recipe, [*tiny(recipe), "train.precision=float64", *overrides])[1]
    model = build_transformer(config.model, 0, torch.float64)
    set_check_finite(model, False)
    rng = np.random.default_rng(0)
    batch = rng.integers(0, 300, (2, 4, 32))
    return config, model, build_optimizer(model, config.optim), (batch[0], batch[1])


def take_step(
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    batch: tuple[np.ndarray, np.ndarray],
    config: RunConfig,
    step: int,
) -> StepRecord:
    """Train one step on a whole batch."""
    return train_step(model, optimizer, cut_batch(*batch, config.data.num_micro_batches), config, step)


def test_the_total_is_the_sum_of_its_terms_and_their_gradients_arrive() -> None:
    config, model, optimizer, batch = setup(
        "model.moe.router_entropy=0.03", "model.moe.load_balance=0.5", "data.micro_batches=1"
    )
    record = take_step(model, optimizer, batch, config, 0)
    terms = record.terms
    expected = (
        terms["loss"]
        + 0.1 * terms["parameter_penalty"]
        + 0.5 * terms["load_balance"]
        + 0.03 * terms["router_entropy"]
    )
    assert terms["loss_total"] == pytest.approx(expected, rel=1e-12)

    fresh = setup("data.micro_batches=1")[1]
    logits, routings = fresh(torch.from_numpy(batch[0]))
    assert terms["loss"] == pytest.approx(
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(batch[1]).flatten()).item(),
        rel=1e-12,
    )
    assert terms["load_balance"] == pytest.approx(np.mean([load_balance(r).item() for r in routings]))
    widths = config.model.moe.expert_widths  # type: ignore[union-attr]
    assert terms["parameter_penalty"] == pytest.approx(
        np.mean([parameter_penalty(r, widths).item() for r in routings])
    )


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    """Without auxiliary losses, whose statistics are per micro-batch."""
    norms = []
    for parts in (1, 2, 4):
        config, model, optimizer, batch = setup(f"data.micro_batches={parts}", recipe="tiny-dense")
        norms.append(take_step(model, optimizer, batch, config, 0).grad_norm)
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-12)


def test_activated_flops_are_those_of_the_experts_chosen() -> None:
    config, model, optimizer, batch = setup()
    record = take_step(model, optimizer, batch, config, 0)
    widths = config.model.moe.expert_widths  # type: ignore[union-attr]
    units = sum(n * w for layer in record.num_pairs_ZE for n, w in zip(layer, widths, strict=True))
    assert record.mean_activated_width == units / 128 / 2
    assert record.flops == pytest.approx(
        128 * estimate_flops_per_token(config.model, 32, record.mean_activated_width), rel=1e-12
    )
    assert record.experts_per_token == 2
    assert sum(map(sum, record.num_pairs_ZE)) == 128 * 2 * 2


def test_hyperexperts_are_counted_for_each_selection_that_occurred() -> None:
    config, model, optimizer, batch = setup(
        "model.moe.hyper={dim: 4, embedding: 5, hidden: 6}", "data.micro_batches=2"
    )
    num_generated = []
    network = model.hyper_network
    assert network is not None
    hook = network.register_forward_hook(lambda m, given, o: num_generated.append(len(given[0])))  # type: ignore[func-returns-value]
    record = take_step(model, optimizer, batch, config, 0)
    hook.remove()
    assert len(num_generated) == 4
    assert 1 < min(num_generated) <= max(num_generated) <= 28
    hyper = config.model.moe.hyper  # type: ignore[union-attr]
    assert hyper is not None
    plain = 128 * estimate_flops_per_token(config.model, 32, record.mean_activated_width)
    assert record.flops == pytest.approx(
        plain + 6 * sum(num_generated) * hyper.generation_parameters(model.config.dim), rel=1e-12
    )


def test_biases_move_once_per_step_by_what_was_asked_in_all_of_it() -> None:
    router = "model.moe.router={name: top_k, k: 2, bias_rate: 0.125, capacity_factor: 0.5}"
    config, model, optimizer, batch = setup(router, "data.micro_batches=2")
    asked = [0.0, 0.0]
    for half in np.split(batch[0], 2):
        asked = [load_E + r.load_E for load_E, r in zip(asked, model(torch.from_numpy(half))[1], strict=True)]
    take_step(model, optimizer, batch, config, 0)
    for block, load_E in zip(model.blocks, asked, strict=True):
        expected = 0.125 * torch.sign(load_E.double().mean() - load_E.double())  # type: ignore[attr-defined]
        torch.testing.assert_close(block.ffn.router.bias_E.detach(), expected)  # type: ignore[union-attr]
        assert len(set(expected.tolist())) > 1


def test_noise_differs_between_micro_batches_steps_and_seeds_and_repeats() -> None:
    def seeds(*overrides: str, step: int = 0) -> list[object]:
        config, model, optimizer, batch = setup(
            "model.moe.router={name: top_k, k: 2, jitter: 0.5}", "data.micro_batches=2", *overrides
        )
        noise_seeds: list[object] = []
        real = model.hidden
        model.hidden = lambda tokens, context: (
            noise_seeds.append(context.noise_seed),
            real(tokens, context),
        )[1]  # type: ignore[method-assign, func-returns-value]
        take_step(model, optimizer, batch, config, step)
        return noise_seeds

    several = [*seeds(), *seeds(step=1), *seeds("seed=1")]
    assert len(set(several)) == 6
    assert seeds() == several[:2]


def test_clipping_bounds_the_step_and_reports_the_norm_before() -> None:
    config, model, optimizer, batch = setup("optim.clip=1e-3")
    seen = []
    real = torch.optim.AdamW.step
    norm = lambda: torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item()  # type: ignore[misc]  # noqa: E731
    optimizer.step = lambda: (seen.append(norm()), real(optimizer))  # type: ignore[method-assign, assignment, func-returns-value, arg-type]
    record = take_step(model, optimizer, batch, config, 0)
    assert seen[0] == pytest.approx(1e-3, rel=1e-3)
    assert record.grad_norm > 1e-2


@pytest.mark.parametrize("poison", ["loss", "gradient"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_nothing(poison: str, value: float) -> None:
    config, model, optimizer, batch = setup()
    take_step(model, optimizer, batch, config, 0)
    before = [p.detach().clone() for p in model.parameters()]
    moments = [s["exp_avg"].clone() for s in optimizer.state.values()]
    if poison == "loss":
        hook = model.norm.register_forward_hook(lambda m, i, o: o * value)
    else:
        hook = model.blocks[0].attention.q_proj.weight.register_hook(lambda g: g * value)  # type: ignore[assignment]
    record = take_step(model, optimizer, batch, config, 1)
    hook.remove()
    assert not record.applied
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(torch.equal(a, s["exp_avg"]) for a, s in zip(moments, optimizer.state.values(), strict=True))
    assert take_step(model, optimizer, batch, config, 2).applied


def test_bfloat16_keeps_float32_weights_and_trains() -> None:
    config = recipes.read_recipe("tiny", [*tiny("tiny"), "train.precision=bfloat16"])[1]
    model = build_transformer(config.model, 0)
    set_check_finite(model, False)
    optimizer = build_optimizer(model, config.optim)
    _, _, _, batch = setup()
    losses = [take_step(model, optimizer, batch, config, 30 + step).terms["loss"] for step in range(15)]
    assert losses[-1] < losses[0] - 0.5
    assert {p.dtype for p in model.parameters()} == {torch.float32}
