"""Groups of seeds and their comparison, on run folders with planted numbers."""

import json
import random
from pathlib import Path

import pytest
import yaml

from hmoe.config.counts import count_training_flops
from hmoe.config.recipes import dump_recipe, read_recipe
from hmoe.errors import CheckpointError, ConfigError
from hmoe.runs.comparison import Comparison, compare_groups, find_flops_outliers
from hmoe.runs.groups import read_run_groups
from hmoe.runs.summary import read_run_summary
from hmoe.runs.validations import Validation

FIXED = "train.log_every=4"


def write_run(
    run: Path, recipe: str, bits: float | None, *overrides: str, width: float = 250, steps: int = 8
) -> Path:
    """A run folder as training leaves it, without checkpoint: rows of every fourth step, the last one validated."""
    config = read_recipe(recipe, [FIXED, f"train.steps={steps}", *overrides])[1]
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(dump_recipe(config))
    model, tokens = config.model, config.data.batch_tokens
    units = round(width * tokens) * len(model.moe_layers)
    rows, timing = [], []
    for step in range(4, steps + 1, 4):
        flops = count_training_flops(model, config.data.sequence_length, step * tokens, step * units)
        row = {"step": step, "tokens": step * tokens, "flops": flops}
        if model.moe is not None:
            row |= {"mean_activated_width": width, "experts_per_token": 2.0}
        if step == steps and bits is not None:
            row |= {"validation_loss": bits * 2, "validation_bits_per_byte": bits}
        rows.append(json.dumps(row) + "\n")
        timing.append(json.dumps({"step": step, "seconds": step * 1.5, "tokens_per_second": 9.0}) + "\n")
    (run / "metrics.jsonl").write_text("".join(rows))
    (run / "timing.jsonl").write_text("".join(timing))
    return run


def write_seeds(
    folder: Path, name: str, recipe: str, bits: list[float], *overrides: str, **options: float
) -> None:
    for seed, value in enumerate(bits):
        write_run(folder / f"{name}-{seed}", recipe, value, f"seed={seed}", *overrides, **options)  # type: ignore[arg-type]


def compare(folder: Path, baseline: str | None = None) -> Comparison:
    return compare_groups(read_run_groups([str(path) for path in sorted(folder.iterdir())]), baseline)


def test_a_summary_tells_what_the_logs_hold(tmp_path: Path) -> None:
    run = read_run_summary(write_run(tmp_path / "a", "tiny", 2.5, width=241.5))
    assert (run.step, run.tokens, run.last_validation) == (8, 8 * 4096, Validation(8, 5.0, 2.5))
    assert run.mean_width == pytest.approx(241.5)  # from the FLOPs
    assert (run.uniform_width, run.experts_per_token, run.seconds, run.progress) == (256, 2, 12, 1)
    dense = read_run_summary(write_run(tmp_path / "b", "tiny-dense", None, width=0))
    assert dense.mean_width is dense.uniform_width is dense.last_validation is None
    assert dense.activated_parameters == dense.total_parameters


def test_seeds_of_a_recipe_are_one_row_named_by_their_folders(tmp_path: Path) -> None:
    write_seeds(tmp_path, "unequal", "tiny", [2.0, 2.2, 2.1])
    write_seeds(tmp_path, "equal-seed", "tiny-equal", [2.0, 2.2])
    rows = {row["name"]: row for row in compare(tmp_path).rows}
    assert rows.keys() == {"unequal", "equal"}
    assert rows["unequal"]["seeds"] == [0, 1, 2]
    assert rows["unequal"]["bits_per_byte"] == pytest.approx(2.1)
    assert rows["unequal"]["bits_per_byte_half_width"] == pytest.approx(
        0.248, abs=1e-3
    )  # 4.303 x 0.1 / sqrt(3)
    assert rows["equal"]["steps"] == 8


def test_folders_of_seeds_and_given_names(tmp_path: Path) -> None:
    write_seeds(tmp_path / "seeds", "s", "tiny", [2.0, 2.2])
    write_run(tmp_path / "other" / "0", "tiny-equal", 2.0)
    write_run(tmp_path / "other" / "1", "tiny-equal", 2.0, "seed=1")
    words = [f"mine={tmp_path / 'seeds'}", str(tmp_path / "other")]
    assert [(group.name, group.seeds) for group in read_run_groups(words)] == [
        ("mine", (0, 1)),
        ("other", (0, 1)),
    ]


def test_folders_of_one_name_are_told_apart_by_the_folder_above(tmp_path: Path) -> None:
    write_run(tmp_path / "x" / "run", "tiny", 2.0)
    write_run(tmp_path / "y" / "run", "tiny-equal", 2.0)
    groups = read_run_groups([str(tmp_path / "x" / "run"), str(tmp_path / "y" / "run")])
    assert [group.name for group in groups] == ["x/run", "y/run"]


def test_a_folder_with_an_equals_sign_is_a_folder(tmp_path: Path) -> None:
    assert read_run_groups([str(write_run(tmp_path / "lr=1", "tiny", 2.0))])[0].name == "lr=1"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "nothing: no such folder"),
        (["empty"], "empty: holds no run folder and is none"),
        (["a", "a"], "a: is given twice"),
        (["a", "same"], "a and same: the same recipe with the same seed 0"),
        (["n=a", "n=b"], "n: its runs have different recipes: model.moe.load_balance is 0.0 in a, 0.01 in b"),
        ([""], "names no folder"),
        (["a/metrics.jsonl"], "a/metrics.jsonl: is a file"),
    ],
)
def test_what_cannot_be_grouped(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name, recipe in (("a", "tiny"), ("same", "tiny"), ("b", "tiny-equal")):
        write_run(Path(name), recipe, 2.0)
    with pytest.raises(ConfigError, match=message):
        read_run_groups(words)


def test_a_run_without_rows_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", "tiny", 2.0)
    (run / "metrics.jsonl").write_text("")
    assert read_run_summary(run).step == 0
    with pytest.raises(ConfigError, match="has taken no training step"):
        read_run_groups([str(run)])


@pytest.mark.parametrize(
    ("flops", "expected"),
    [
        ([100, 101], [False, False]),
        ([100, 103], [True, True]),
        ([100, 101, 200], [False, False, True]),
        ([100, 100, 200, 200], [True] * 4),
        ([100, 101.5, 103], [True] * 3),
        ([100, 101.5, 103, 103.1], [True, False, False, False]),
        ([100], [False]),
    ],
)
def test_flops_that_differ_are_marked(flops: list[float], expected: list[bool]) -> None:
    assert find_flops_outliers(flops) == expected


def test_a_planted_difference_is_told_with_its_size(tmp_path: Path) -> None:
    generator = random.Random(0)
    seeds = [2 + generator.gauss(0, 0.05) for _ in range(4)]  # large, but the same for all recipes
    write_seeds(tmp_path, "base", "tiny-equal", seeds)
    write_seeds(tmp_path, "ahead", "tiny", [s - 0.04 + generator.gauss(0, 0.004) for s in seeds])
    write_seeds(
        tmp_path, "null", "tiny", [s + generator.gauss(0, 0.004) for s in seeds], "model.moe.router_z=0.1"
    )
    rows = {row["name"]: row for row in compare(tmp_path, "base").rows}
    ahead, null = rows["ahead"], rows["null"]
    assert ahead["difference_low"] < -0.04 < ahead["difference_high"] < 0
    assert ahead["verdict"].startswith("ahead by 0.0")
    assert ahead["sign_flip_p"] == 0.125
    assert null["difference_low"] < 0 < null["difference_high"]
    assert null["verdict"].startswith("no difference shown; up to 0.0")
    assert "verdict" not in rows["base"]
    assert ahead["confidence"] == pytest.approx(0.975)


def test_a_single_pair_has_no_verdict(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "tiny", 2.0)
    write_run(tmp_path / "b", "tiny-equal", 1.0)
    result = compare(tmp_path, "b")
    assert result.rows[0]["verdict"] == "one pair of seeds: no interval"
    assert any("a single seed has no interval" in note for note in result.notes)


@pytest.mark.parametrize(
    ("overrides", "options", "verdict"),
    [
        ([], {"width": 500.0}, "not at equal FLOPs (45.3% more, seed 0)"),
        (["train.eval_sequences=3"], {}, "validated on other text (384 tokens, 8,192 there)"),
        (["data.path=elsewhere"], {}, "one of them has no checkpoint, so nobody knows its data"),
        (["data.sequence_length=64"], {}, "other data.sequence_length"),
    ],
)
def test_what_does_not_belong_together_has_no_verdict(
    overrides: list[str], options: dict[str, float], verdict: str, tmp_path: Path
) -> None:
    write_seeds(tmp_path, "base", "tiny-equal", [2.0, 2.1, 2.2])
    write_seeds(tmp_path, "other", "tiny", [1.0, 1.1, 1.2], *overrides, **options)
    row = compare(tmp_path, "base").rows[1]
    assert row["verdict"].startswith(verdict)
    assert row["difference"] is None
    assert "difference_low" not in row


def test_seeds_without_a_partner_are_left_out_and_said(tmp_path: Path) -> None:
    write_seeds(tmp_path, "base", "tiny-equal", [2.0, 2.1, 2.2])
    write_seeds(tmp_path, "other", "tiny", [1.0, 1.11])
    result = compare(tmp_path, "base")
    assert result.rows[1]["pairs"] == 2
    assert "other: seeds without a partner are left out of its difference: 2" in result.notes


def test_unfinished_runs_and_missing_validations_are_said(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", "tiny", 2.0)
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("steps: 8", "steps: 80"))
    write_run(tmp_path / "b", "tiny-equal", None)
    notes = compare(tmp_path).notes
    assert f"{run}: is not finished, 10% of its budget" in notes
    assert f"{tmp_path / 'b'}: has no validation at its last step, 8" in notes


def test_the_baseline_may_be_a_folder_and_must_exist(tmp_path: Path) -> None:
    write_seeds(tmp_path, "base", "tiny-equal", [2.0, 2.1])
    write_seeds(tmp_path, "other", "tiny", [1.0, 1.11])
    assert compare(tmp_path, str(tmp_path / "base-1")).rows[1]["pairs"] == 2
    with pytest.raises(ConfigError, match=r"baseline = bse: must be a row .*nearest is base"):
        compare(tmp_path, "bse")


def test_benchmarks_measured_into_the_run_folder_are_averaged_over_seeds(tmp_path: Path) -> None:
    write_seeds(tmp_path, "a", "tiny", [2.0, 2.1])
    for seed, accuracy in enumerate((0.5, 0.6)):
        tasks = {
            "piqa": {"metrics": {"acc": accuracy}},
            "boolq": {"metrics": {"acc": 0.5}},
            "copa": {"metrics": {}},
        }
        if seed:
            del tasks["boolq"]
        write_results(tmp_path / f"a-{seed}" / "benchmarks", {"training_step": 8, "tasks": tasks})
    write_results(
        tmp_path / "a-0" / "old", {"training_step": 4, "tasks": {"piqa": {"metrics": {"acc": 0.0}}}}
    )
    assert compare(tmp_path).rows[0]["benchmarks"] == {"piqa": pytest.approx(0.55)}
    write_results(
        tmp_path / "a-1" / "few", {"training_step": 8, "options": {"limit": 9}, "tasks": {"copa": ACCURATE}}
    )
    write_results(
        tmp_path / "a-0" / "few", {"training_step": 8, "options": {"limit": 8}, "tasks": {"copa": ACCURATE}}
    )
    result = compare(tmp_path)
    assert result.rows[0]["benchmarks"] == {"piqa": pytest.approx(0.55)}
    assert [
        note.split(": ", 1)[1] for note in result.notes if "results.json" in note or "measured" in note
    ] == [
        "is of step 4, not of the last one, 8",
        "was measured with different options or data, so it has no column",
        "boolq was not measured on all seeds",
    ]
    (tmp_path / "a-0" / "old" / "results.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"old/results\.json: is no result of an evaluation"):
        compare(tmp_path)


ACCURATE = {"metrics": {"acc": 0.5}}


def write_results(folder: Path, result: dict[str, object]) -> None:
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(result))


def test_recipes_that_differ_in_logging_are_one(tmp_path: Path) -> None:
    write_run(tmp_path / "a-0", "tiny", 2.0)
    write_run(tmp_path / "a-1", "tiny", 2.0, "seed=1", "train.sample_every=0", "train.save_every=7")
    write_run(tmp_path / "b", "tiny", 2.0, "seed=2", "optim.lr=1e-3")
    assert [row["seeds"] for row in compare(tmp_path).rows] == [[0, 1], [2]]
    assert yaml.safe_load((tmp_path / "b" / "config.yaml").read_text())["seed"] == 2


def test_rows_have_different_names_whatever_the_folders_are_called(tmp_path: Path) -> None:
    for seed, recipe in enumerate(("tiny", "tiny", "tiny-equal", "tiny-equal")):
        write_run(tmp_path / f"exp-{seed}", recipe, 2.0 + seed / 10, f"seed={seed % 2}")
    assert [row["name"] for row in compare(tmp_path).rows] == ["exp-0+exp-1", "exp-2+exp-3"]
    assert compare(tmp_path, "exp-2+exp-3").rows[0]["pairs"] == 2


def test_only_seeds_are_cut_from_names(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / f"w1{seed}-s{seed}", "tiny", 2.0, f"seed={seed}")
        write_run(tmp_path / f"tiny-seed{seed}", "tiny", 2.0, f"seed={seed}", "optim.lr=1e-3")
    assert [row["name"] for row in compare(tmp_path).rows] == ["tiny", tmp_path.name]


def test_experts_that_see_later_tokens_are_not_ahead(tmp_path: Path) -> None:
    choosing = ["train.sample_every=0"]
    write_seeds(tmp_path, "causal", "tiny", [2.0, 2.1], *choosing)
    write_seeds(tmp_path, "choice", "tiny-expert-choice", [1.0, 1.12], *choosing)
    result = compare(tmp_path, "causal")
    assert result.rows[1]["verdict"] == "in one of them experts see later tokens"
    assert any("cannot be compared with those of causal" in note for note in result.notes)


def test_pairs_that_do_not_vary_have_no_interval(tmp_path: Path) -> None:
    write_seeds(tmp_path, "a", "tiny", [2.0, 2.5])
    write_seeds(tmp_path, "b", "tiny-equal", [1.9, 2.4])
    result = compare(tmp_path, "a")
    assert result.rows[1]["verdict"] == "-0.1000 in each of 2 pairs, which do not vary: no interval"
    assert not any("Holm" in note for note in result.notes)


def test_runs_that_have_not_begun_are_left_out_of_a_folder_and_said(tmp_path: Path) -> None:
    write_run(tmp_path / "g" / "a", "tiny", 2.0)
    (write_run(tmp_path / "g" / "b", "tiny", 2.0, "seed=1") / "metrics.jsonl").write_text("")
    write_run(tmp_path / "g" / "more" / "c", "tiny", 2.0)
    lines: list[str] = []
    assert [group.seeds for group in read_run_groups([str(tmp_path / "g")], lines.append)] == [(0,)]
    assert [line.rpartition("/")[2] for line in lines] == [
        "more: holds run folders of its own; name it too",
        "b: has taken no training step yet",
    ]


def test_recipes_that_differ_in_their_budget_alone_are_said(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "tiny", 2.0)
    write_run(tmp_path / "b", "tiny", 2.0, "seed=1", steps=16)
    assert any(
        "a and b: differ in their budgets alone (train.steps)" in note for note in compare(tmp_path).notes
    )
