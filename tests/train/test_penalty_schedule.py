"""Penalties on width begin late and grow; what is logged stays unscaled."""

import pytest
import torch

import hmoe
from hmoe.specs.hugging_face import read_hf_spec, write_hf_keys
from hmoe.specs.model import MoESpec
from hmoe.train.penalty_schedule import scale_penalties
from tests import oracles
from tests.train.test_step import setup, take_step

BOTH = ("model.moe.width_cost=0.5", "model.moe.load_balance=0.2")
SCHEDULE = ("model.moe.penalty_start=2", "model.moe.penalty_warmup=4")


@pytest.mark.parametrize(("start", "warmup"), [(0, 0), (3, 0), (0, 4), (3, 1), (2, 7)])
def test_the_scale_is_that_of_the_loop(start: int, warmup: int) -> None:
    moe = MoESpec(widths=(3, 5), parameter_penalty=0.1, penalty_start=start, penalty_warmup=warmup)
    scales = [scale_penalties(step, moe) for step in range(14)]
    assert scales == pytest.approx([oracles.penalty_scale(step, start, warmup) for step in range(14)])
    assert scales[-1] == 1
    assert scales.count(0) == start


def gradients(*overrides: str, step: int) -> tuple[dict[str, float], list[torch.Tensor]]:
    """Terms of one step, and the gradients that reached the optimiser."""
    config, model, optimizer, batch = setup("optim.clip=null", "data.micro_batches=1", *overrides)
    kept: list[torch.Tensor] = []
    optimizer.register_step_pre_hook(
        lambda *_: kept.extend(p.grad.clone() for p in model.parameters() if p.grad is not None)
    )
    return take_step(model, optimizer, batch, config, step).terms, kept


@pytest.mark.parametrize(("step", "scale"), [(0, 0.0), (1, 0.0), (2, 0.25), (4, 0.75), (5, 1.0), (99, 1.0)])
def test_a_step_uses_the_scaled_coefficients_and_logs_unscaled_terms(step: int, scale: float) -> None:
    terms, grads = gradients(*BOTH, *SCHEDULE, step=step)
    plain, _ = gradients(*BOTH, step=step)
    weighted = 0.1 * terms["parameter_penalty"] + 0.5 * terms["width_cost"]
    expected = terms["loss"] + 0.2 * terms["load_balance"] + scale * weighted
    assert terms["loss_total"] == pytest.approx(expected, rel=1e-12)
    assert {k: v for k, v in terms.items() if k != "loss_total"} == {
        k: v for k, v in plain.items() if k != "loss_total"
    }
    if scale:
        written = [f"model.moe.parameter_penalty={0.1 * scale}", f"model.moe.width_cost={0.5 * scale}"]
        same = gradients("model.moe.load_balance=0.2", *written, step=step)[1]
    else:
        same = gradients("model.moe.load_balance=0.2", "model.moe.parameter_penalty=0", step=step)[1]
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-15) for a, b in zip(grads, same, strict=True))


def test_a_schedule_without_a_penalty_is_refused_and_an_export_keeps_it() -> None:
    with pytest.raises(
        hmoe.ConfigError, match=r"moe\.penalty_warmup has no effect while parameter_penalty and"
    ):
        MoESpec(widths=(3, 5), penalty_warmup=5)
    config = setup(*SCHEDULE)[0]
    keys = write_hf_keys(config.model, 32)
    assert keys["training_rules"] == {"penalty_start": 2, "penalty_warmup": 4}
    assert read_hf_spec(keys).moe.penalty_warmup == 4  # type: ignore[union-attr]
    with pytest.raises(hmoe.ConfigError, match=r"training_rules\.speed: no such rule"):
        read_hf_spec(keys | {"training_rules": {"speed": 1}})
    assert write_hf_keys(setup()[0].model, 32)["training_rules"] is None
