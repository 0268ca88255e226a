"""`hmoe train` with experts placed on processes: the run of one process, wherever they live, move and go on."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from hmoe.checkpoint.store import load_newest_checkpoint
from hmoe.cli.main import run_command_line
from hmoe.config import recipes
from hmoe.runs.expert_shares import read_frequencies
from hmoe.runs.placement_log import PLACEMENTS, read_placement_log, write_placement_row
from hmoe.specs.placement import Placement, place_contiguously
from hmoe.train.placements import LoadWatch, list_placement_keys, recall_placements
from hmoe.train.processes import OneProcess
from tests.conftest import tiny
from tests.train.helpers import rows, run
from tests.train.test_shared_run import EXACT, start_together

PLACED = [*EXACT, "parallel.experts=expert_parallel"]
MOVES = ["parallel.replace_every=2", "parallel.replace_gain=0"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs of two processes, whose experts moved, and of one."""
    folder = tmp_path_factory.mktemp("placed")
    first, second = start_together(2, folder / "two", *PLACED, *MOVES)
    assert (first.returncode, first.stderr) == (0, "")
    assert "processes: 2, zero2, experts placed on 2, exact" in first.stdout
    assert "layers moved: the busiest process had" in first.stdout
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    run(folder / "one", *EXACT)
    return folder


def test_placed_experts_leave_what_one_process_leaves(trained: Path) -> None:
    one, two = trained / "one", trained / "two"
    assert (two / "metrics.jsonl").read_bytes() == (one / "metrics.jsonl").read_bytes()
    states = [load_newest_checkpoint(folder, False, print) for folder in (one, two)]
    assert states[0] is not None
    assert states[1] is not None
    for kind in ("model", "optimizer"):
        tensors = [getattr(state, kind) for state in states]
        assert tensors[0].keys() == tensors[1].keys()
        assert all((tensors[0][key] == tensors[1][key]).all() for key in tensors[0])
    assert states[0].state == states[1].state


def test_a_file_names_the_pieces_of_experts_that_are_no_neighbours(trained: Path) -> None:
    rows_of = {}
    for rank in range(2):
        file = trained / "two" / "checkpoints" / "step-00000006" / f"model.rank-{rank}-of-2.safetensors"
        with safe_open(file, "pt") as opened:
            metadata = json.loads(opened.metadata()["rows"])
            rows_of[rank] = {k: v for k, v in metadata.items() if k.startswith("blocks.0.ffn.w_gate")}
    names = {name.partition("@")[0] for own in rows_of.values() for name in own}
    assert names == {"blocks.0.ffn.w_gate"}
    assert any("@1" in name for own in rows_of.values() for name in own)


def test_the_log_tells_where_experts_lived(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = read_placement_log(trained / "two")
    assert [row["step"] for row in log] == sorted(row["step"] for row in log)
    assert (log[0]["step"], log[0]["processes"], log[0]["before"], log[0]["layers"]) == (0, 2, None, [0, 1])
    moved = log[1:]
    assert moved
    assert all(row["after"] < row["before"] and row["sent_bytes"] > 0 for row in moved)
    placements = [Placement.from_plain(plain) for plain in log[-1]["placements"]]
    assert {placement.num_ranks for placement in placements} == {2}
    assert not (trained / "one" / PLACEMENTS).exists()
    assert run_command_line(["compare", str(trained / "two")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"experts were placed on 2 processes, and moved {len(moved)} times" in shown
    pages = [tmp_path / f"{name}.html" for name in ("one", "two")]
    for page in pages:
        assert run_command_line(["report", str(trained / page.stem), "--out", str(page)]) == 0
    assert ["Where its experts lived" in page.read_text() for page in pages] == [False, True]


def test_frequencies_are_choices_of_a_token(trained: Path) -> None:
    frequencies = read_frequencies(trained / "two")
    assert frequencies is not None
    assert [sum(layer) for layer in frequencies] == pytest.approx([2, 2], abs=1e-4)  # top-2
    assert read_frequencies(trained / "two", 0) is None


def test_the_run_goes_on_with_other_processes_and_placements(trained: Path, tmp_path: Path) -> None:
    """Two with placed experts, then two by two that move at a checkpoint, then one: the bits of one process."""
    run(trained / "one", *EXACT, "train.steps=14")
    moves = ["parallel.replace_every=1", "parallel.replace_gain=0", "train.save_every=1"]
    (first, *_) = start_together(
        4, trained / "two", *PLACED, "parallel.expert_ranks=2", "parallel.shard=zero3", "train.steps=13",
        "parallel.expert_replicas=1", *moves,
    )  # fmt: skip
    assert (first.returncode, first.stderr) == (0, "")
    assert ": experts of" in first.stdout
    run(trained / "two", *EXACT, "train.steps=14")
    losses = [[row["loss"] for row in rows(trained / name)] for name in ("one", "two")]
    assert losses[0] == losses[1]
    files = [trained / name / "checkpoints" / "step-00000014" for name in ("one", "two")]
    assert all(
        (files[0] / name).read_bytes() == (files[1] / name).read_bytes()
        for name in ("model.safetensors", "optimizer.safetensors")
    )
    by_four = [row for row in read_placement_log(trained / "two") if row["processes"] == 4]
    assert by_four[0]["step"] == 6
    assert len(by_four) > 1
    assert all(row["after"] < row["before"] and row["step"] < 13 for row in by_four[1:])
    assert run_command_line(["export", str(trained / "two"), str(tmp_path / "hf")]) == 0
    assert len(load_file(tmp_path / "hf" / "model.safetensors")) > 10


FAST = (
    *("data.micro_batches=4", "parallel.experts=expert_parallel", "parallel.cut_experts=true"),
    *("train.inspect_every=3", "parallel.expert_replicas=1", "parallel.replace_every=2"),
    *("parallel.replace_gain=0", "parallel.threads=1"),
)


def test_fast_mode_is_one_process_but_for_rounding(tmp_path: Path) -> None:
    """Cuts, replicas, moves, several parts a process, a fused optimiser."""
    (first, *_) = start_together(2, tmp_path / "two", *FAST)
    assert (first.returncode, first.stderr) == (0, "")
    expected = run(tmp_path / "one", "data.micro_batches=4", "parallel.threads=1")
    losses = [[row["loss"] for row in each] for each in (rows(tmp_path / "two"), expected)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert abs(losses[0][0] - losses[1][0]) < 1e-6


@pytest.mark.slow
def test_a_run_that_was_broken_off_lives_where_it_lived(tmp_path: Path) -> None:
    """In fast mode, too, it then has the bits of an unbroken one: it begins at a look at the load."""
    start_together(2, tmp_path / "whole", *FAST)
    start_together(2, tmp_path / "broken", *FAST, "train.steps=4")
    start_together(2, tmp_path / "broken", *FAST, "train.steps=6")
    losses = [[row["loss"] for row in rows(tmp_path / name)] for name in ("whole", "broken")]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("change", ["widths", "processes", "layers"])
def test_a_row_of_another_model_says_nothing(change: str, tmp_path: Path) -> None:
    """Experts live again where they lived, unless the row was changed into one that does not fit."""
    config = recipes.read_recipe("tiny", ["parallel.experts=expert_parallel"])[1]
    assert config.model.moe is not None
    process = OneProcess()
    process.size = 2
    placement = place_contiguously(config.model.moe.expert_widths, 2)
    row = {"step": 3, "keys": list_placement_keys(config, 2)}
    write_placement_row(tmp_path, row, [placement] * 2)
    assert recall_placements(tmp_path, 3, config, process) == [placement] * 2
    assert recall_placements(tmp_path, 2, config, process) is None
    others = {
        "widths": [place_contiguously((4, 4), 2)] * 2,
        "processes": [place_contiguously(config.model.moe.expert_widths, 4)] * 2,
        "layers": [placement],
    }
    write_placement_row(tmp_path, row, others[change])
    assert recall_placements(tmp_path, 3, config, process) is None


def test_a_load_that_comes_and_goes_moves_nothing() -> None:
    """Hysteresis: noise around an even load never pays, a lasting change does once."""
    overrides = ["parallel.experts=expert_parallel", "parallel.replace_every=1"]
    config = recipes.read_recipe("tiny", [*tiny("tiny"), *overrides])[1]
    assert config.model.moe is not None
    widths = config.model.moe.expert_widths
    even = place_contiguously(widths, 1)
    watch = LoadWatch(config, [even, even])
    assert watch.find_better() is None  # nothing was counted
    num_experts = len(widths)
    pairs = Placement(
        widths,
        2,
        tuple((i, 0, h, i % 2 if i < num_experts // 2 else 1 - i % 2) for i, h in enumerate(widths)),  # type: ignore[misc]
    )
    watch = LoadWatch(config, [pairs, pairs])
    for step in range(20):
        noise = [[1000 + 10 * ((7 * i + 3 * step) % 5) for i in range(num_experts)]] * 2
        watch.add(noise)
        assert watch.find_better() is None, step
    changed = [[4000 if i % 2 == 0 else 1000 for i in range(num_experts)], [1000] * num_experts]
    watch.add(changed)
    watch.add(changed)
    better = watch.find_better()
    assert better is not None
    assert better.layers == [0]
    assert better.before > 1.05 * better.after
    watch.add(changed)
    assert watch.find_better() is None  # it has moved already


def test_a_placement_log_is_cut_back_and_survives_damage(tmp_path: Path) -> None:
    placement = place_contiguously((4, 4), 2)
    for step in (0, 4, 8):
        write_placement_row(tmp_path, {"step": step}, [placement])
    write_placement_row(tmp_path, {"step": 4}, [placement])  # a run that went back
    assert [row["step"] for row in read_placement_log(tmp_path)] == [0, 4, 4]
    with (tmp_path / PLACEMENTS).open("ab") as file:
        file.write(b'{"step": 9, "pla')
    assert [row["step"] for row in read_placement_log(tmp_path)] == [0, 4, 4]
    plain = placement.to_plain()
    lost = {**plain, "parts": plain["parts"][1:]}  # an expert without a process
    with (tmp_path / PLACEMENTS).open("wb") as file:
        for placements in ([plain], [lost], [plain]):
            file.write(json.dumps({"step": 4, "placements": placements}).encode() + b"\n")
    assert len(read_placement_log(tmp_path)) == 1
    for bad in ({"step": 4, "placements": [{}]}, {"step": 4, "placements": [[]]}, {"step": 4, "before": "x"}):
        (tmp_path / PLACEMENTS).write_text(json.dumps({"placements": [plain], **bad}) + "\n")
        assert read_placement_log(tmp_path) == []
    write_placement_row(tmp_path, {"step": 0}, [placement])
    for _ in range(2):
        write_placement_row(tmp_path, {"step": 4}, [placement])
    write_placement_row(tmp_path, {"step": 9}, [placement])
    assert [row["step"] for row in read_placement_log(tmp_path)] == [0, 4, 4, 9]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["parallel.expert_ranks=2"],
            "expert_ranks has no effect unless experts = expert_parallel; remove it",
        ),
        (["parallel.replace_every=2"], "replace_every has no effect unless experts = expert_parallel"),
        (
            ["parallel.experts=expert_parallel", "parallel.replicas=2"],
            "replicas = 2: with experts = expert_parallel",
        ),
        (
            ["parallel.experts=expert_parallel", "parallel.exact=true", "parallel.cut_experts=true"],
            "cut_experts = true: with exact = true must be false",
        ),
        (
            [
                "parallel.experts=expert_parallel",
                "parallel.expert_placement=contiguous",
                "parallel.cut_experts=true",
            ],
            "cut_experts has no effect with expert_placement = contiguous",
        ),
        (
            ["parallel.experts=expert_parallel", "parallel.replace_gain=0.1"],
            "replace_gain has no effect with replace_every = 0",
        ),
    ],
)
def test_keys_without_effect_are_refused(
    overrides: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["plan", "tiny", *overrides]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "overrides", "size", "said"),
    [
        (
            "tiny",
            ["parallel.expert_ranks=3"],
            4,
            "expert_ranks = 3: must divide the 4 processes of this run; nearest is 2",
        ),
        (
            "tiny",
            [
                "parallel.expert_ranks=3",
                "parallel.exact=true",
                "data.micro_batches=6",
                "data.batch_tokens=768",
            ],
            6,
            "and with exact = true be a power of two, or all; nearest is 2",
        ),
        ("tiny-dense", [], 2, "experts = expert_parallel: the model has no experts; nearest is null"),
        ("tiny", ["parallel.expert_replicas=9"], 2, "expert_replicas = 9: the model has 8 experts"),
        (
            "tiny",
            ["parallel.expert_ranks=2", "parallel.shard=ddp"],
            4,
            "with parallel.shard = ddp must be all 4",
        ),
    ],
)
def test_what_so_many_processes_cannot_place_is_one_line(
    recipe: str, overrides: list[str], size: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "plan",
        recipe,
        "--processes",
        str(size),
        "parallel.experts=expert_parallel",
        "data.micro_batches=12",
    ]
    assert run_command_line([*words, "data.batch_tokens=1536", *overrides]) == 2
    assert said in capsys.readouterr().err
