import json

import pytest

from hmoe import ConfigError
from hmoe.cli.main import run_command_line
from hmoe.config import recipes
from hmoe.config.memory import (
    ENOUGH_TOKENS,
    FEWEST_TOKENS,
    SHARE,
    Device,
    choose_unset,
    count_memory,
    describe_choice,
    estimate_memory_by_part,
    read_host,
)
from hmoe.config.run import RunConfig
from hmoe.specs.chunk import count_chunk_tokens

UNSET = ["data.micro_batches=null", "train.activation_checkpointing=null"]


def gpu(gigabytes: float) -> Device:
    return Device("cuda", round(gigabytes * 1e9))


def load(recipe: str, *overrides: str) -> RunConfig:
    return recipes.read_recipe(recipe, [*UNSET, *overrides])[1]


def chosen(config: RunConfig, device: Device) -> tuple[int, bool]:
    settled = choose_unset(config, device)
    return settled.data.num_micro_batches, settled.train.recomputes_blocks


@pytest.mark.parametrize(
    ("preset", "gigabytes", "expected"),
    [
        ("hmoe-0.4b-topk", 80, (80, False)),  # 32,768 tokens are enough, however large the device
        ("hmoe-0.4b-topk", 192, (80, False)),
        ("hmoe-0.4b-topk", 24, (128, False)),
        ("hmoe-3b-topp", 80, (80, True)),  # without checkpointing: one sequence
        ("hmoe-16b-topk", 80, (640, True)),  # nothing fits: the least
    ],
)
def test_the_paper_s_presets_are_cut_for_a_gpu(
    preset: str, gigabytes: float, expected: tuple[int, bool]
) -> None:
    assert chosen(recipes.read_recipe(preset)[1], gpu(gigabytes)) == expected


@pytest.mark.parametrize("gigabytes", [11, 13, 16, 20, 30, 60])
@pytest.mark.parametrize("sequences", [1, 7, 60, 61])
def test_a_choice_divides_the_batch_and_fits_and_nothing_better_does(gigabytes: int, sequences: int) -> None:
    config = load("hmoe-0.4b-topp", f"data.batch_tokens={4096 * sequences}")
    parts, recompute = chosen(config, gpu(gigabytes))
    assert sequences % parts == 0
    tokens = 4096 * sequences // parts

    def fits(size: int, again: bool) -> bool:
        given = [f"data.micro_batches={size}", f"train.activation_checkpointing={str(again).lower()}"]
        settled = load("hmoe-0.4b-topp", f"data.batch_tokens={4096 * sequences}", *given)
        return count_memory(settled, "cuda") <= SHARE * gigabytes * 1e9

    assert fits(parts, recompute)
    larger = [size for size in range(1, parts) if sequences % size == 0]
    if larger and tokens < ENOUGH_TOKENS:
        assert not fits(larger[-1], recompute)
    if recompute:
        plain = [
            4096 * sequences // n for n in range(1, sequences + 1) if sequences % n == 0 and fits(n, False)
        ]
        assert max(plain, default=0) < min(tokens, FEWEST_TOKENS)


def test_on_a_cpu_unset_means_one_micro_batch_without_checkpointing_where_that_fits() -> None:
    config = load("tiny")
    needed = count_memory(choose_unset(config, Device("cpu", 10**12)), "cpu")
    assert chosen(config, Device("cpu", needed)) == (1, False)
    parts, recompute = chosen(config, Device("cpu", needed - 1))
    assert parts > 1
    assert not recompute
    assert chosen(config, Device("cpu", 1)) == (config.data.batch_sequences, True)


def test_what_is_given_stays() -> None:
    given = load("hmoe-0.4b-topk", "data.micro_batches=640", "train.activation_checkpointing=false")
    assert choose_unset(given, gpu(1)) == given
    assert chosen(load("hmoe-0.4b-topk", "data.micro_batches=64"), gpu(80)) == (64, False)
    assert chosen(load("hmoe-0.4b-topk", "data.micro_batches=20"), gpu(40)) == (20, True)
    assert chosen(load("hmoe-0.4b-topk", "train.activation_checkpointing=true"), gpu(12)) == (320, True)
    assert chosen(load("hmoe-3b-topp", "train.activation_checkpointing=false"), gpu(80)) == (640, False)


def test_where_nobody_chooses_a_batch_is_one_part_and_nothing_is_computed_again() -> None:
    """For own loops over a recipe: as it was before the keys could be unset."""
    unset, given = load("tiny"), load("tiny", "data.micro_batches=1", "train.activation_checkpointing=false")
    assert (unset.data.num_micro_batches, unset.train.recomputes_blocks) == (1, False)
    assert estimate_memory_by_part(unset, "cpu") == estimate_memory_by_part(given, "cpu")


def test_a_gpu_has_room_for_all_experts_that_a_token_can_choose() -> None:
    """By differences to equal experts, of which a token chooses two."""

    def units_beyond_equal(preset: str) -> int:
        given = ["data.micro_batches=640", "train.activation_checkpointing=false"]
        ours, equal = (
            estimate_memory_by_part(load(name, *given), "cuda")["activations"]
            for name in (preset, "moe-0.4b-topk")
        )
        return round((ours - equal) / (12 * 4096 * 2 * 2))

    assert units_beyond_equal("hmoe-0.4b-topk") == 2016 + 2208 - 2 * 1536
    assert units_beyond_equal("hmoe-0.4b-topp") == (8 - 2) * 1536


@pytest.mark.parametrize(
    ("preset", "tokens", "recompute", "measured"),
    [
        ("hmoe-0.4b-topk", 4096, True, 7.38),
        ("hmoe-0.4b-topk", 32768, False, 24.04),
        ("moe-0.4b-topk", 32768, False, 22.00),
        ("dense-0.2b", 32768, False, 23.01),
        ("hmoe-3b-topk", 4096, True, 42.86),
    ],
)
def test_the_estimate_is_what_a_gpu_took(
    preset: str, tokens: int, recompute: bool, measured: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """benchmarks/results/gpu-run-2026-11-27.json, when the loss was computed in chunks of 512 tokens there too."""
    monkeypatch.setattr("hmoe.config.memory.count_chunk_tokens", lambda vocab, kind: 512)
    given = [f"data.batch_tokens={4 * tokens}", "data.micro_batches=4"]
    config = load(preset, *given, f"train.activation_checkpointing={str(recompute).lower()}")
    assert count_memory(config, "cuda") / 1e9 == pytest.approx(measured, rel=0.05)


def test_chunks_of_the_loss() -> None:
    assert [count_chunk_tokens(vocab, "cpu") for vocab in (257, 1024, 32000)] == [8160, 2048, 512]
    assert [count_chunk_tokens(vocab, "cuda") for vocab in (257, 32000, 2**17, 2**24)] == [
        8192,
        8192,
        2048,
        512,
    ]


def test_plan_tells_the_choice_and_the_memory_it_assumed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["plan", "hmoe-3b-topp", "--memory", "80", "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    expected = {"micro_batches": 80, "micro_batch_tokens": 32768, "activation_checkpointing": True, "device": "cuda",
                "device_memory_bytes": 80_000_000_000, "fits": True,
                "memory_assumed": "as given, of a GPU"}  # fmt: skip
    assert {key: numbers[key] for key in expected} == expected
    assert run_command_line(["plan", "hmoe-16b-topk", "--memory=80", "train.device=cpu"]) == 0
    out = capsys.readouterr().out
    assert "as given, of a CPU" in out
    assert "in 80.0 GB: no" in out
    assert run_command_line(["plan", "tiny"]) == 0
    assert "this machine's; --memory GB plans for a GPU" in capsys.readouterr().out
    assert run_command_line(["plan", "tiny", "--memory", "0"]) == 2


def test_the_choice_is_one_line() -> None:
    config = choose_unset(recipes.read_recipe("hmoe-0.4b-topk")[1], gpu(80))
    assert describe_choice(config, gpu(80)) == (
        "micro-batches: 80 of 32,768 tokens, no activation checkpointing: 25.3 GB of 80.0 GB"
    )


@pytest.mark.parametrize("answer", [ValueError("unrecognized"), -1])
def test_a_system_that_does_not_tell_its_memory_is_one_line(
    answer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(name: str) -> object:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("os.sysconf", ask)
    with pytest.raises(ConfigError, match="does not tell how much memory it has"):
        read_host()
