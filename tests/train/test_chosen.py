"""What a run chooses by itself when it begins, and keeps."""

from pathlib import Path

import pytest

from hmoe import ConfigError
from hmoe.config import recipes
from hmoe.config.memory import Device, choose_unset, count_memory
from hmoe.runs.open_run import open_run
from tests.conftest import tiny
from tests.train.helpers import digests, run

UNSET = ["data.micro_batches=null", "train.activation_checkpointing=null", "train.eval_every=1"]


def small_host() -> Device:
    """A machine on which one micro-batch of the tiny run does not fit."""
    config = recipes.read_recipe("tiny", [*tiny("tiny"), *UNSET])[1]
    return Device("cpu", count_memory(choose_unset(config, Device("cpu", 10**12)), "cpu") - 1)


def test_a_choice_is_the_run_s_like_a_given_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hmoe.train.device_fit.read_host", small_host)
    run(tmp_path / "chosen", *UNSET, "train.steps=2")
    config = recipes.read_recipe(str(tmp_path / "chosen" / "config.yaml"))[1]
    parts, recompute = config.data.num_micro_batches, config.train.recomputes_blocks
    assert parts > 1
    assert f"micro-batches: {parts} of {128 // parts} tokens" in capsys.readouterr().out

    monkeypatch.undo()  # on a machine with more memory
    given = [f"data.micro_batches={parts}", f"train.activation_checkpointing={str(recompute).lower()}"]
    other = [f"data.micro_batches={1}", *UNSET[1:]]
    with pytest.raises(
        ConfigError, match=rf"data\.micro_batches: differs .*: 1 in the recipe, {parts} in the checkpoint"
    ):
        run(tmp_path / "chosen", *other, "train.steps=3")
    run(tmp_path / "chosen", *UNSET, "train.steps=3")
    assert recipes.read_recipe(str(tmp_path / "chosen" / "config.yaml"))[1].data.micro_batches == parts
    assert "micro-batches" not in capsys.readouterr().out
    run(tmp_path / "given", *UNSET, *given, "train.steps=3")
    assert digests(tmp_path / "given") == digests(tmp_path / "chosen")


def test_a_config_without_the_choice_is_read_with_the_checkpoint_s(tmp_path: Path) -> None:
    run(tmp_path, *UNSET, "train.steps=1")
    file = tmp_path / "config.yaml"
    assert "micro_batches: 1\n" in file.read_text()
    file.write_text(file.read_text().replace("micro_batches: 1\n", "micro_batches: null\n"))
    assert open_run(tmp_path, pytest.fail)[0].data.micro_batches == 1


def test_a_device_that_is_too_small_is_refused_with_what_would_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hmoe.train.device_fit.read_host", lambda: Device("cpu", 1000))
    with pytest.raises(
        ConfigError,
        match=r"which has 1\.0 kB; see `hmoe plan`, then lower model sizes or set parallel\.offload$",
    ):
        run(tmp_path / "a", *UNSET)
    given = ["data.micro_batches=2", "train.activation_checkpointing=false"]
    with pytest.raises(
        ConfigError,
        match=r"sizes, raise data\.micro_batches, set train\.activation_checkpointing or set parallel\.offload$",
    ):
        run(tmp_path / "b", *given)
    assert not (tmp_path / "a" / "config.yaml").exists()
