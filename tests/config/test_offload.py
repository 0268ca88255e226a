"""What a plan tells of experts that lie elsewhere, against what moves and is held."""

import json
import sys
from pathlib import Path

import pytest

import hmoe
from hmoe.config import recipes
from hmoe.config.hardware import Hardware
from hmoe.config.memory import Device, count_memory
from hmoe.config.offload import (
    choose_offload_bytes,
    count_expert_bytes,
    count_held_bytes,
    count_traffic_of_offload,
)
from hmoe.config.plan import make_plan
from hmoe.config.run import RunConfig
from hmoe.config.step_time import simulate_step
from hmoe.errors import ConfigError
from hmoe.model.transformer import build_transformer
from tests.parallel.offload_helpers import Trainer, count_least, opened
from tests.train.helpers import call

WIDE = [
    "model.dim=64",
    "model.heads=2",
    "model.layers=3",
    "model.moe.widths=[8,24,40,120]",
    "data.batch_tokens=512",
]
LINK = {"gather_bytes_per_second": 1e12, "reduce_bytes_per_second": 1e12}
MACHINE = {
    "device": "cpu", "memory_bytes": 10**10, "processes_per_node": 1, "peak_flops": 1e12, "node": LINK,
    **{f"{name}_flops": 1e11 for name in ("attention", "scores", "experts", "ffn", "head")},
    "elementwise_bytes_per_second": 1e10, "optimizer_bytes_per_second": 1e10,
}  # fmt: skip


def read(*overrides: str) -> RunConfig:
    return recipes.read_recipe("tiny", [*WIDE, "data.micro_batches=1", *overrides])[1]


def test_a_quarter_of_the_experts_is_at_hand_unless_a_run_says_otherwise() -> None:
    weights = 3 * 64 * 4 * (8 + 24 + 40 + 120) * 3
    assert count_expert_bytes(read()) == weights
    assert choose_offload_bytes(read("parallel.offload=disk")) == 3 * 64 * 4 * 240  # the two widest are more
    assert choose_offload_bytes(read("parallel.offload=disk", "model.layers=9")) == 3 * weights // 4
    assert choose_offload_bytes(read("parallel.offload=disk", "parallel.offload_bytes=200000")) == 200_000
    assert choose_offload_bytes(read("parallel.offload=disk", "parallel.offload_bytes=10000000")) == weights


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("parts", [1, 3])
def test_a_step_moves_what_is_planned(parts: int, recomputes: bool, tmp_path: Path) -> None:
    """All experts busy in every micro-batch, and the least at hand."""
    config = read(
        "parallel.offload=disk", f"data.batch_tokens={parts * 128}", f"data.micro_batches={parts}", "model.vocab=300",
        f"train.activation_checkpointing={recomputes}", "parallel.offload_bytes=184320",
    )  # fmt: skip
    assert config.parallel.offload_bytes == count_least(config.model)
    model = build_transformer(config.model, seed=1)
    model.activation_checkpointing = recomputes
    for block in model.blocks:
        block.ffn.router.spec = hmoe.TopP(p=1.0)
    with opened(model, tmp_path) as offload:
        trainer, moved = Trainer(model, offload), offload.storage.moved
        trainer.train(1, parts)
        offload.settle()
        before = (moved.read_bytes, moved.written_bytes)
        trainer.train(2, parts)
        read_bytes, written_bytes = moved.read_bytes - before[0], moved.written_bytes - before[1]
    planned = count_traffic_of_offload(config)
    assert written_bytes == 2 * planned.written
    assert read_bytes == pytest.approx(2 * planned.read, rel=0.1)


def test_memory_is_what_is_at_hand_and_all_that_is_no_expert() -> None:
    whole, elsewhere = read(), read("parallel.offload=disk")
    experts = count_expert_bytes(whole)
    for kind in ("cpu", "cuda"):
        more, less = (count_memory(config, kind) for config in (whole, elsewhere))
        held = count_held_bytes(elsewhere)
        # Weights and both moments at least; gradients, too, at another moment.
        assert 3 * experts <= more - less + held <= 5 * experts
    # Of float32: a quarter of the weights, three sets of the widest one's gradients, and chunks of four matrices.
    assert (
        count_held_bytes(elsewhere)
        == choose_offload_bytes(elsewhere) + 3 * 3 * 64 * 120 * 4 + 4 * 64 * 120 * 4
    )


def test_a_plan_tells_whether_it_is_worth_it() -> None:
    roomy, tight = (
        Device("cpu", 10**10),
        Device("cpu", count_memory(read("parallel.offload=disk"), "cpu") + 1000),
    )
    plan = make_plan(read("parallel.offload=disk"), roomy)
    assert plan["offload"]["fits_without"]
    assert plan["offload"]["memory_bytes"] == plan["memory_bytes"] < plan["offload"]["memory_without_bytes"]
    assert not make_plan(read("parallel.offload=disk"), tight)["offload"]["fits_without"]
    advice = make_plan(read("train.activation_checkpointing=false"), tight)["offload_advice"]
    assert advice == {
        "offload": "disk", "offload_bytes": None, "memory_bytes": tight.memory_bytes - 1000, "fits": True,
    }  # fmt: skip
    tighter = Device("cpu", count_memory(read("parallel.offload=disk", "model.layers=30"), "cpu") - 1000)
    plan = make_plan(read("model.layers=30", "train.activation_checkpointing=false"), tighter)
    assert plan["offload_advice"]["offload_bytes"] == 3 * 64 * 4 * 240
    assert plan["offload_advice"]["fits"]
    assert "offload_advice" not in make_plan(read(), roomy)
    assert make_plan(read("parallel.exact=true"), Device("cpu", 1000))["offload_advice"] is None


def test_a_fast_disk_is_hidden_and_a_slow_one_sets_the_pace() -> None:
    config = read("parallel.offload=disk", "data.batch_tokens=1024")
    traffic = count_traffic_of_offload(config)

    def simulate(rate: float) -> float:
        rates = {"disk_read_bytes_per_second": rate, "disk_write_bytes_per_second": rate}
        return simulate_step(config, Hardware.model_validate(MACHINE | rates), 1).seconds

    without = simulate_step(read("data.batch_tokens=1024"), Hardware.model_validate(MACHINE), 1).seconds
    assert simulate(1e15) == pytest.approx(without, rel=1e-3)
    slow = traffic.read + traffic.written
    assert simulate(1.0) == pytest.approx(slow, rel=0.01)
    # Moving takes half as long as computing: 1.5 times without overlap; of three layers the first waits for its own.
    assert simulate(2 * slow / without) < 1.3 * without
    with pytest.raises(
        ConfigError, match=r"parallel\.offload = disk: needs disk_read_bytes_per_second and disk_write"
    ):
        simulate_step(config, Hardware.model_validate(MACHINE), 1)


def test_the_verb_tells_it(tmp_path: Path) -> None:
    file = tmp_path / "machine.yaml"
    file.write_text(
        json.dumps(MACHINE | {"disk_read_bytes_per_second": 1e9, "disk_write_bytes_per_second": 1e9})
    )
    command = [*["-m", "hmoe", "plan", "tiny", "parallel.offload=disk"], *WIDE]
    plain = call(sys.executable, *command).stdout
    assert "expert offload" in plain
    assert "not needed: all fits without" in " ".join(plain.split())
    timed = call(sys.executable, *command, "--hardware", str(file)).stdout
    assert "times as long as without" in " ".join(timed.split())
