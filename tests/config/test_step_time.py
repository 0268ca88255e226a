"""The simulated step: against sums by hand, and against what is counted elsewhere."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from hmoe.config import recipes
from hmoe.config.counts import count_parameters, estimate_flops_per_token
from hmoe.config.hardware import Hardware, get_rate, list_machines, read_hardware
from hmoe.config.run import RunConfig
from hmoe.config.step_time import StepTime, simulate_step
from hmoe.config.step_work import count_block_work
from hmoe.config.traffic import count_traffic
from hmoe.errors import ConfigError

LINK = {"gather_bytes_per_second": 1e6, "reduce_bytes_per_second": 2e6}
MACHINE: dict[str, Any] = {
    "memory_bytes": 10**9, "processes_per_node": 8, "peak_flops": 1e9, "attention_flops": 1e9, "scores_flops": 5e8,
    "experts_flops": 2e9, "ffn_flops": 3e9, "head_flops": 4e9, "elementwise_bytes_per_second": 1e10,
    "optimizer_bytes_per_second": 1e9, "node": LINK,
}  # fmt: skip
MODES = {
    "ddp": ["parallel.shard=ddp"],
    "zero2": ["parallel.shard=zero2"],
    "zero3": ["parallel.shard=zero3"],
    "replicas": ["parallel.shard=zero2", "parallel.replicas=2"],
    "exact": ["parallel.exact=true"],
}


def load(*overrides: str) -> RunConfig:
    fixed = ["data.micro_batches=8", "train.activation_checkpointing=false", *overrides]
    return recipes.read_recipe("tiny", fixed)[1]


def simulate(config: RunConfig, num_processes: int = 1, **changes: Any) -> StepTime:
    return simulate_step(config, Hardware.model_validate({**MACHINE, **changes}), num_processes)


@pytest.mark.parametrize("preset", ["tiny", "tiny-dense", "tiny-deepseek", "hmoe-0.4b-topp", "hmoe-16b-topk"])
def test_blocks_have_the_parameters_and_flops_that_are_counted_elsewhere(preset: str) -> None:
    model = recipes.read_recipe(preset)[1].model
    work, parts = count_block_work(model, 100), count_parameters(model)
    inside = sum(block.parameters for block in work)
    total = sum(parts.values())
    outside = parts["embedding"] + parts["head"]
    assert outside <= total - inside <= outside + model.dim + model.layers * len(work)
    flops = 3 * sum(block.attention + block.scores + block.experts + block.ffn for block in work)
    flops += 6 * model.vocab * model.dim + 6 * parts["norms"]
    bias = 6 * model.layers * len(model.moe.routed_widths) if model.moe else 0  # of some routers
    assert abs(flops - estimate_flops_per_token(model, 100)) <= bias + 1


def test_one_process_takes_the_sum_of_its_parts() -> None:
    config = load("model.layers=2", "model.dim=32", "model.heads=2", "model.vocab=600")
    step = simulate(config, block_seconds=0.5, step_seconds=0.25)
    tokens, length, width = config.data.batch_tokens, config.data.sequence_length, 2 * 128
    attention = 3 * tokens * 2 * (2 * 4 * 32 * 32 / 1e9 + 2 * length * 32 / 5e8)
    experts = 3 * tokens * 2 * (2 * 3 * 32 * width + 2 * 32 * 8) / 2e9
    head = 3 * tokens * 2 * 600 * 32 / 4e9
    moved = 3 * tokens * 2 * 4 * (10 * 32 + 4 * 32 + 4 * 2 * 32) / 1e10
    optimizer = 28 * sum(count_parameters(config.model).values()) / 1e9
    adding = 7 * 12 * sum(count_parameters(config.model).values()) / 1e9
    overhead = 8 * 2 * 0.5 + 0.25
    parts = {
        "attention": attention, "experts": experts, "head and loss": head, "norms, residuals, routing": moved,
        "optimizer": optimizer, "overhead": overhead, "adding gradients": adding,
    }  # fmt: skip
    for name, seconds in parts.items():
        assert step.by_part[name] == pytest.approx(seconds), name
    assert step.by_part["waiting"] == 0
    assert step.seconds == pytest.approx(sum(parts.values()))
    assert step.tokens_per_second == pytest.approx(tokens / step.seconds)
    flops = tokens * estimate_flops_per_token(config.model, length)
    assert step.mfu == pytest.approx(flops / step.seconds / 1e9)


def test_recomputation_is_another_forward_pass_of_the_blocks() -> None:
    plain, again = (simulate(load(f"train.activation_checkpointing={value}")) for value in ("false", "true"))
    for part in ("attention", "experts", "norms, residuals, routing"):
        assert again.by_part[part] == pytest.approx(4 / 3 * plain.by_part[part])
    assert again.by_part["head and loss"] == plain.by_part["head and loss"]
    assert again.mfu < plain.mfu


def test_gradients_are_added_whole_or_in_rows_that_are_kept() -> None:
    """Of 8 micro-batches by two processes, four each: three times; in exact mode the rows of all eight."""
    whole = 12 * sum(count_parameters(load().model).values()) / 1e9
    for mode, times in (("ddp", 3), ("zero2", 3), ("zero3", 3 / 2), ("exact", 7 / 2)):
        assert simulate(load(*MODES[mode]), 2).by_part["adding gradients"] == pytest.approx(times * whole)
    assert simulate(load(), 8).by_part["adding gradients"] == 0


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "exact"])
def test_one_process_shares_nothing_whatever_the_recipe_says(mode: str) -> None:
    one, plain = (simulate(load(*words), 1) for words in (MODES[mode], []))
    assert one.seconds == pytest.approx(plain.seconds)
    assert one.communication_seconds == 0


def test_who_shares_takes_longer() -> None:
    alone, together = (
        simulate(load(), size, sharing_seconds=3.0, step_seconds=0.5).by_part["overhead"] for size in (1, 2)
    )
    assert (alone, together) == (0.5, 3.5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [2, 4, 8])
def test_what_is_sent_takes_its_bytes_at_the_rate(mode: str, size: int) -> None:
    config = load(*MODES[mode])
    sent = count_traffic(config, size)
    seconds = sent.gathered / 1e6 + sent.reduced / 2e6 + sent.repeated / 2 * (1 / 1e6 + 1 / 2e6)
    for overlap in (0.0, 1.0):
        step = simulate(config, size, overlap=overlap)
        assert step.communication_seconds == pytest.approx(seconds)
    # Nothing is hidden: both add up.
    whole = simulate(config, size, overlap=0.0)
    assert whole.by_part["waiting"] == pytest.approx(seconds)
    assert whole.seconds == pytest.approx(seconds + sum(whole.by_part.values()) - whole.by_part["waiting"])


def test_traffic_by_hand() -> None:
    config, total = load(), 4 * sum(count_parameters(load().model).values())
    inside = 4 * sum(block.parameters for block in count_block_work(config.model, 1))

    def count(mode: str) -> tuple[float, float, float]:
        sent = count_traffic(load(*MODES[mode]), 4)
        return sent.gathered, sent.reduced, sent.repeated

    assert count("ddp") == pytest.approx((0, 0, 2 * 3 / 4 * total))
    assert count("zero2") == pytest.approx((3 / 4 * total, 3 / 4 * total, 0))
    # Two micro-batches each: weights of blocks for two forward and two backward passes.
    assert count("zero3") == pytest.approx((3 / 4 * (2 * total + 2 * inside), 2 * 3 / 4 * total, 0))
    assert count("replicas") == pytest.approx((total / 2, total / 2, total / 2))
    assert count("exact") == pytest.approx((3 / 4 * total, 2 * 3 / 4 * total, 0))


def test_a_fast_link_is_hidden_but_for_the_first_weights_and_the_last_gradients() -> None:
    config = load("parallel.shard=zero3", "model.layers=5")
    fast = {"gather_bytes_per_second": 1e8, "reduce_bytes_per_second": 1e8}
    step = simulate(config, 4, node=fast)
    work = count_block_work(config.model, 1)
    outside = sum(count_parameters(config.model).values()) - sum(block.parameters for block in work)
    # For each of two micro-batches: weights outside of blocks and of the first block, again of the last one for the
    # backward pass, then gradients of the first block and outside of blocks.
    exposed = 2 * 3 / 4 * 4 * (2 * outside + 3 * work[0].parameters) / 1e8
    assert step.by_part["waiting"] == pytest.approx(exposed)
    assert step.by_part["waiting"] < 0.5 * step.communication_seconds


def test_slower_links_never_make_a_step_shorter() -> None:
    config = load("parallel.shard=zero3")
    rates = [1e9, 1e8, 1e7, 1e6, 1e5]
    links = [{"gather_bytes_per_second": rate, "reduce_bytes_per_second": rate} for rate in rates]
    seconds = [simulate(config, 4, node=link).seconds for link in links]
    assert all(a <= b for a, b in pairwise(seconds))
    assert seconds[0] < 0.1 * seconds[-1]
    late = simulate(config, 4, node={**links[0], "latency_seconds": 0.01, "hop_seconds": 0.02})
    num_operations = 2 * (1 + 2 * config.model.layers) + 2 * (config.model.layers + 1)
    extra = late.communication_seconds - simulate(config, 4, node=links[0]).communication_seconds
    assert extra == pytest.approx(num_operations * (0.01 + 3 * 0.02) + 0.01)


def test_a_link_may_be_slower_for_large_blocks() -> None:
    config = load("parallel.shard=zero2")
    block = 4 * count_block_work(config.model, 1)[0].parameters
    slow = {block // 10: 1e6, 10 * block: 1e4}
    table = simulate(config, 2, node={**LINK, "gather_bytes_per_second": slow}, overlap=0.0)
    plain = simulate(config, 2, overlap=0.0)
    sizes = [4 * count.parameters for count in count_block_work(config.model, 1)]
    sizes.append(4 * sum(count_parameters(config.model).values()) - sum(sizes))
    extra = sum(size / 2 * (1 / get_rate(slow, size) - 1 / 1e6) for size in sizes)
    assert table.by_part["waiting"] - plain.by_part["waiting"] == pytest.approx(extra)
    assert get_rate(slow, block) == pytest.approx(1e5, rel=1e-4)


def test_more_machines_talk_through_the_network() -> None:
    config = load("parallel.shard=zero2", "parallel.replicas=2")
    slow = {"gather_bytes_per_second": 1e4, "reduce_bytes_per_second": 1e4}
    one = simulate(config, 4)
    two = simulate(config, 4, processes_per_node=2, network=slow)
    sent = count_traffic(config, 4)
    inside = sent.gathered / 1e6 + sent.reduced / 2e6  # within each half, which is one machine
    assert two.communication_seconds == pytest.approx(inside + sent.repeated / 1e4)
    assert two.seconds > one.seconds
    with pytest.raises(ConfigError, match="4 processes: the machine has 2, and `network` is not given"):
        simulate(config, 4, processes_per_node=2)


def test_rates_between_two_widths_lie_on_a_line_over_the_logarithm() -> None:
    table = {64: 1e9, 256: 4e9}
    assert get_rate(7.0, 99) == 7.0
    assert [get_rate(table, width) for width in (1, 64, 256, 10**6)] == [1e9, 1e9, 4e9, 4e9]
    assert get_rate(table, 128) == pytest.approx(2e9)


def test_machines_that_are_shipped_and_files(tmp_path: Path) -> None:
    assert set(list_machines()) == {"a100", "a800", "h100", "h800"}
    for name in list_machines():
        machine = read_hardware(name)
        assert machine.device == "cuda"
        assert machine.network is not None
        for rate in (
            machine.attention_flops,
            machine.experts_flops,
            machine.head_flops,
            machine.scores_flops,
        ):
            assert get_rate(rate, 1024) < machine.peak_flops
    with pytest.raises(
        ConfigError, match=r"hardware = a10: must be a .yaml file or one of a100, a800, h100, h800"
    ):
        read_hardware("a10")
    file = tmp_path / "machine.yaml"
    for text, said in (
        ("memory_bytes: 1\n", "machine.yaml: .*missing"),
        ("memory_byts: 1\n", "machine.yaml: "),
        ("[1]\n", "machine.yaml"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=said):
            read_hardware(str(file))
    with pytest.raises(ConfigError, match=r"no-such\.yaml"):
        read_hardware(str(tmp_path / "no-such.yaml"))
