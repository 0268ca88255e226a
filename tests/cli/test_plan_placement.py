"""`hmoe plan --placement`: where experts would live, how even that is, and what a step takes, beside others."""

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from hmoe.cli.main import run_command_line
from tests.conftest import tiny

LARGE = ["hmoe-0.4b-topk", "--placement", "--processes", "4"]


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert run_command_line(["plan", *words]) == 0
    return capsys.readouterr().out


def plan_numbers(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    numbers: dict[str, Any] = json.loads(plan(capsys, *words, "--json"))
    return numbers


def test_the_paper_s_model_pairs_large_with_small_experts(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = plan_numbers(capsys, *LARGE, "--hardware", "a800", "parallel.shard=zero3")
    rows = {row["placement"]: row for row in numbers["rows"]}
    assert (rows["even"]["memory"], rows["even"]["compute"]) == (1, 1)
    assert rows["contiguous"]["memory"] == pytest.approx(1.375)
    assert rows["even"]["step_seconds"] < rows["contiguous"]["step_seconds"]
    assert rows["even"]["solved_in_seconds"] < 5
    assert len(numbers["placements"]) == 12
    assert numbers["kind"] == "even"


def test_a_load_from_a_file_decides(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Sixty-four experts of five widths, small ones busy: whole ones are nearly even, contiguous ones far from it."""
    widths = [(64, 96, 160, 320, 640)[i % 5] for i in range(64)]
    widths.sort()
    loads = tmp_path / "loads.json"
    loads.write_text(json.dumps([1 / width for width in widths]))
    overrides = [f"model.moe.widths={widths}", "model.layers=2"]
    words = [
        "tiny",
        "--placement",
        "--processes",
        "8",
        "--loads",
        str(loads),
        *overrides,
        "data.micro_batches=8",
    ]
    numbers = plan_numbers(capsys, *words)
    rows = {row["placement"]: row for row in numbers["rows"]}
    assert max(rows["even"]["memory"], rows["even"]["compute"]) < 1.02
    assert rows["contiguous"]["memory"] > 2
    text = plan(capsys, *words)
    assert f"as {loads} says" in " ".join(text.split())
    # A line for each process, whose bars are shares of an even part.
    assert len(re.findall(r"^ +\d+  (?:1\.0|0\.9)\d █{12} ", text, re.MULTILINE)) == 8


def test_each_layer_may_have_a_load_of_its_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    loads = tmp_path / "loads.json"
    loads.write_text(json.dumps([[1] * 8, [9, 1, 1, 1, 1, 1, 1, 1]]))
    words = ["tiny", "--placement", "--processes", "2", "--loads", str(loads), "data.micro_batches=2"]
    numbers = plan_numbers(capsys, *words)
    assert [sum(layer) for layer in numbers["frequencies"]] == pytest.approx([2, 2])
    assert numbers["placements"][0] != numbers["placements"][1]


def test_the_recipe_s_own_placement_is_what_is_drawn(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "experts.svg"
    plan(capsys, *LARGE, "--out", str(out))
    plain = "".join(ElementTree.fromstring(out.read_text()).itertext())
    assert "even: memory 1.00, computing 1.00 times even" in plain
    contiguous = ("parallel.experts=expert_parallel", "parallel.expert_placement=contiguous")
    plan(capsys, *LARGE, *contiguous, "--out", str(out))
    assert "".join(ElementTree.fromstring(out.read_text()).itertext()) == plain
    keys = ["parallel.experts=expert_parallel", "parallel.expert_replicas=1"]
    text = plan(capsys, *LARGE, *keys, "--out", str(out))
    assert "as the recipe" in text
    assert "every process: 0 (864)" in text
    root = ElementTree.fromstring(out.read_text())
    drawn = "".join(root.itertext())
    assert "contiguous: memory 1.38, computing 1.38 times even" in drawn
    assert "on every process: 0" in drawn
    assert {f"process {rank}" for rank in range(4)} <= set(re.findall(r"process \d", drawn))


def test_a_run_is_planned_by_its_own_load(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["train", "tiny", "--run", str(run), *tiny("tiny"), "train.steps=3", "data.micro_batches=4"]
    assert run_command_line([*words, "train.eval_every=0"]) == 0
    capsys.readouterr()
    numbers = plan_numbers(capsys, str(run), "--placement", "--processes", "2")
    assert numbers["loads"] == f"as {run} was measured lately"
    assert len(set(numbers["frequencies"][0])) > 1


def test_processes_without_experts_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(plan(capsys, "tiny", "--placement", "--processes", "16", "data.micro_batches=16").split())
    assert "8 of 16 processes have no expert of their own: nearest is parallel.expert_ranks=8" in text
    exact = " ".join(plan(capsys, *LARGE, "parallel.exact=true", "data.micro_batches=4").split())
    assert "even, cut" not in exact
    assert "Cuts are not for exact mode" in exact


def test_a_log_of_another_model_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["train", "tiny", "--run", str(run), *tiny("tiny"), "train.steps=1", "train.eval_every=0"]
    assert run_command_line([*words, "data.micro_batches=4"]) == 0
    capsys.readouterr()
    for overrides in (["model.layers=4"], ["model.moe.widths=[4, 5, 6, 7]"]):
        assert run_command_line(["plan", str(run), "--placement", "--processes", "2", *overrides]) == 3
        assert "its log is of 2 layers of 8 experts, the recipe has" in capsys.readouterr().err


def test_the_step_follows_the_load(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Where narrow experts are busy a token activates fewer units, and the simulated step is shorter."""
    loads, seconds = tmp_path / "loads.json", []
    for power in (0, 3):
        loads.write_text(json.dumps([(7 / (7 + i)) ** power for i in range(8)]))
        numbers = plan_numbers(
            capsys, *LARGE, "--hardware", "a800", "--loads", str(loads), "parallel.shard=zero3"
        )
        seconds.append(numbers["rows"][1]["step_seconds"])
    assert seconds[1] < seconds[0]


def test_a_plan_of_placed_experts_counts_what_the_busiest_process_has(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shared = ["hmoe-16b-topk", "--processes", "32", "--hardware", "h800", "parallel.shard=zero3"]
    shared.append("data.micro_batches=64")
    placed = [*shared, "parallel.experts=expert_parallel", "parallel.expert_ranks=8"]
    first, second = (plan_numbers(capsys, *words) for words in (shared, placed))
    assert first["sent_bytes"]["travelling"] == 0
    assert second["sent_bytes"]["travelling"] > 0
    assert second["sent_bytes"]["gathered"] < first["sent_bytes"]["gathered"] / 5
    contiguous = plan_numbers(capsys, *placed, "parallel.expert_placement=contiguous")
    assert contiguous["step"]["seconds"] > second["step"]["seconds"]
    assert contiguous["memory_by_part_bytes"]["optimizer"] > second["memory_by_part_bytes"]["optimizer"]
    assert "tokens that travel" in second["step"]["by_part_seconds"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["tiny", "--placement"], 2, "--placement needs several processes, such as --processes 8"),
        (
            ["tiny", "--placement", "--processes", "2", "parallel.replicas=2"],
            2,
            "replicas = 2: with experts = expert_parallel",
        ),
        (["tiny-dense", "--placement"], 2, "--placement: tiny-dense has no experts"),
        (["tiny", "--placement", "--out", "x.png"], 2, "--out x.png: must end with .svg"),
        (["tiny", "--placement", "--out", "nowhere/x.svg"], 2, "the folder nowhere does not exist"),
        (["tiny", "--placement", "--memory", "80"], 2, "--memory has no effect with --placement"),
        (["tiny", "--out", "x.svg"], 2, "--out has no effect without --control or --placement"),
        (["tiny", "--loads", "x.json"], 2, "--loads has no effect unless experts are placed"),
        (
            ["tiny", "--placement", "--processes", "2", "--loads", "none.json"],
            3,
            "none.json: cannot be read as JSON",
        ),
        (
            ["tiny", "--placement", "--processes", "3", "data.micro_batches=4"],
            2,
            "3 processes cannot share that evenly",
        ),
    ],
)
def test_what_cannot_be_planned_is_one_line(
    words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["plan", *words]) == code
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "content",
    ["[1, 2]", "[1, 2, 3, 4, 5, 6, 7, -1]", "[[1,1,1,1,1,1,1,1]]", "{}", "[]", '["a"]', "[0,0,0,0,0,0,0,0]"],
)
def test_loads_that_do_not_fit_are_named(
    content: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    loads = tmp_path / "loads.json"
    loads.write_text(content)
    assert run_command_line(["plan", "tiny", "--placement", "--processes", "2", "--loads", str(loads)]) == 3
    assert "must be 8 numbers, or such a list for each of 2 layers" in capsys.readouterr().err
