"""What metrics.jsonl tells over training, recomputed from its rows."""

import json
from pathlib import Path
from typing import Any

import pytest

from hmoe.config.counts import count_fixed_parameters
from hmoe.config.recipes import dump_recipe, read_recipe
from hmoe.errors import ConfigError
from hmoe.runs.training_history import list_history_tables, read_training_history, smooth_values
from tests.train.helpers import run


def test_parameters_by_width_add_up_to_what_each_step_activated(tmp_path: Path) -> None:
    rows = run(tmp_path / "r", recipe="tiny-topp")
    history = read_training_history(tmp_path / "r")
    tables, model = list_history_tables(history), history.config.model
    assert model.moe is not None
    assert history.notes == ()
    for row in rows:
        own = [each for each in tables["history"] if each["step"] == row["step"]]
        total = sum(each["activated_parameters"] for each in own)
        assert total + count_fixed_parameters(model) == pytest.approx(row["activated_parameters"], rel=1e-12)
        assert sum(each["token_share"] for each in own) == pytest.approx(1)
        pairs = row["experts_per_token_by_layer"]
        assert sum(pairs) / len(pairs) == pytest.approx(row["experts_per_token"])
        for each in own:
            slow = sum(
                3 * model.dim * each["width"] * share * count
                for shares, count in zip(row["expert_token_share"], pairs, strict=True)
                for share, width in zip(shares, model.moe.routed_widths, strict=True)
                if width == each["width"]
            )
            assert each["activated_parameters"] == pytest.approx(slow, rel=1e-4, abs=1)
    terms = {(each["step"], each["name"]): each["value"] for each in tables["history_terms"]}
    assert terms[6, "validation_loss"] == rows[-1]["validation_loss"]
    assert terms[2, "parameter_penalty"] == rows[1]["parameter_penalty"]


def plant(folder: Path, recipe: str, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_recipe(read_recipe(recipe)[1]))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_equal_widths_are_one_group_and_old_rows_are_told(tmp_path: Path) -> None:
    model = read_recipe("tiny-equal")[1].model
    assert model.moe is not None
    count, layers = len(model.moe.routed_widths), len(model.moe_layers)
    shares = [[1 / count] * count] * layers
    counts = {"tokens": 1, "flops": 1, "loss": None}
    old = {"step": 1, **counts, "experts_per_token": 2.0, "expert_token_share": shares}
    history = read_training_history(plant(tmp_path / "a", "tiny-equal", [old, {"step": 2, **counts}]))
    (row,) = list_history_tables(history)["history"]
    assert (row["num_experts"], row["token_share"], row["seconds"]) == (count, 1, None)
    expected = 3 * model.dim * row["width"] * 2 * layers
    assert row["activated_parameters"] == pytest.approx(expected, rel=1e-2)
    assert any("1 of 2 rows do not tell which experts" in note for note in history.notes)
    assert any("1 of 2 rows are of an earlier version" in note for note in history.notes)


def test_a_dense_run_has_terms_alone(tmp_path: Path) -> None:
    rows = [{"step": 1, "tokens": 9, "flops": 9, "loss": 2.5}]
    tables = list_history_tables(read_training_history(plant(tmp_path / "a", "tiny-dense", rows)))
    assert (tables["history"], tables["history_shares"]) == ([], [])
    assert [(row["name"], row["value"]) for row in tables["history_terms"]] == [("loss", 2.5)]
    with pytest.raises(ConfigError, match="not a run folder"):
        read_training_history(tmp_path)


def test_smoothing_is_a_running_mean_of_what_is_known() -> None:
    assert smooth_values([1.0, None, 3.0, 5.0], 3) == [1, 2, 4, 4]
    assert smooth_values([None, None], 3) == [None, None]
    assert smooth_values([1.0, 7.0], 1) == [1.0, 7.0]
    with pytest.raises(ConfigError, match="window = 0"):
        smooth_values([], 0)
