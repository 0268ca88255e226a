"""Router saturation: against sets counted slowly, on planted routings, and on independent ones."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hmoe.config.recipes import dump_recipe, read_recipe
from hmoe.errors import CheckpointError, ConfigError
from hmoe.runs.probe_history import locate_probe, read_probe_history


def write(run: Path, step: int, chosen: list[list[list[int]]], **changes: Any) -> None:
    (run / "probe").mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text(dump_recipe(read_recipe("tiny")[1]))
    num_tokens = len(chosen[0])
    probe = {"format": 1, "step": step, "split": "valid", "tokens": [list(range(num_tokens))], "chosen": chosen,
             "blocks": list(range(len(chosen))), "widths": [8] * 6, "units": [0] * num_tokens,
             "nll": [None] * num_tokens, **changes}  # fmt: skip
    locate_probe(run, step).write_text(json.dumps(probe))


def draw(rng: np.random.Generator, count: int = 60) -> list[list[int]]:
    return [sorted(rng.choice(6, rng.integers(1, 4), replace=False).tolist()) for _ in range(count)]


def test_agreement_and_its_null_are_those_of_sets_of_pairs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    first, last = [draw(rng), draw(rng)], [draw(rng), draw(rng)]
    write(tmp_path, 5, first)
    write(tmp_path, 10, last)
    rows = read_probe_history(tmp_path)["saturation"]
    assert [(row["step"], row["layer"]) for row in rows] == [(s, z) for s in (5, 10) for z in (0, 1, None)]
    for layer in (0, 1):
        a, b = ({(t, e) for t, own in enumerate(table[layer]) for e in own} for table in (first, last))
        shuffled = [len({((t + shift) % 60, e) for t, e in a} & b) for shift in range(60)]
        assert rows[layer]["agreement"] == len(a & b) / len(b)
        assert rows[layer]["null"] == pytest.approx(np.mean(shuffled) / len(b))
    assert [row["agreement"] for row in rows[3:]] == [1, 1, 1]


def test_layers_without_pairs_and_runs_without_probes(tmp_path: Path) -> None:
    write(tmp_path, 1, [[[], []]])
    assert read_probe_history(tmp_path)["saturation"][0]["agreement"] is None
    locate_probe(tmp_path, 1).unlink()
    assert read_probe_history(tmp_path) == {"saturation": []}
    with pytest.raises(ConfigError, match="not a run folder"):
        read_probe_history(tmp_path / "probe")


def test_damaged_files_and_other_texts_are_named(tmp_path: Path) -> None:
    write(tmp_path, 1, [[[0], [1]]])
    write(tmp_path, 2, [[[0], [1]]], tokens=[[7, 8]])
    with pytest.raises(CheckpointError, match=r"step-00000001\.json: is of another text"):
        read_probe_history(tmp_path)
    write(tmp_path, 2, [[[0], [6]]])
    with pytest.raises(CheckpointError, match=r"step-00000002\.json: damaged"):
        read_probe_history(tmp_path)
