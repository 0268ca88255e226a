"""A run is what its checkpoint says it is.

config.yaml is compared with it at every door, and taken from it where it is lost.
"""

import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from hmoe import ConfigError
from hmoe.cli.main import run_command_line as hmoe
from hmoe.config import recipes
from hmoe.config.run import RESUMABLE, RunConfig
from hmoe.runs import config_binding as binding
from hmoe.runs.open_run import open_run
from tests.conftest import tiny
from tests.train.helpers import digests, run

MINI = ["model.layers=1", "model.dim=16", "train.eval_every=0", "train.save_every=100"]


def config_of(*overrides: str) -> RunConfig:
    return recipes.read_recipe("tiny", [*tiny("tiny"), "train.steps=2", *MINI, *overrides])[1]


def state_of(config: RunConfig, step: int = 2, data: str | None = "data") -> dict[str, Any]:
    return {
        "step": step,
        "data": data,
        "config": binding.dump_bound_config(config),
        "tokenizer": "",
        "side_files": {},
    }


def write_config(folder: Path, config: RunConfig) -> Path:
    (folder / "config.yaml").write_text(recipes.dump_recipe(config))
    return folder / "config.yaml"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("binding") / "run"
    run(folder, "train.steps=2", *MINI)
    return folder


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.mark.parametrize("preset", ["tiny", "tiny-dense", "tiny-moepp", "hmoe-3b-topp"])
def test_a_checkpoint_holds_every_key_but_those_that_may_differ(preset: str) -> None:
    config = recipes.read_recipe(preset)[1]
    recorded = binding.load_recorded_config(state_of(config))
    assert recorded is not None
    assert recipes.list_changed_values(recorded, config) == {}
    kept = set(dict(recipes.flatten_tree(binding.dump_bound_config(config))))
    assert kept & RESUMABLE <= ({"data.path"} if config.data.path == "corpus" else set())
    assert {"seed", "model.dim", "optim.lr", "train.precision", "data.sequence_length"} <= kept


def test_a_changed_key_is_refused_with_both_values_and_a_free_one_is_not(tmp_path: Path) -> None:
    config = config_of()
    write_config(
        tmp_path, config_of("train.steps=9", "train.device=auto", "train.dead_after=7", "data.verify=false")
    )
    told: list[str] = []
    assert binding.read_run_config(tmp_path, state_of(config), told.append).train.steps == 9
    assert told == []
    for change in (
        "model.heads=4",
        "seed=1",
        "optim.eps=1e-7",
        "data.micro_batches=1",
        "model.moe.router.k=1",
    ):
        write_config(tmp_path, config_of(change))
        key, _, value = change.partition("=")
        expected = (
            rf"{key}: differs from the checkpoint of step 2: {value.rstrip('7')}.* in .*yaml, "
            r".* in the checkpoint"
        )
        with pytest.raises(ConfigError, match=expected):
            binding.read_run_config(tmp_path, state_of(config), told.append)


def test_another_kind_is_named_first_and_not_all_that_comes_with_it(tmp_path: Path) -> None:
    write_config(tmp_path, config_of("seed=1", "model.moe.router={name: top_p}"))
    with pytest.raises(ConfigError) as error:
        binding.read_run_config(tmp_path, state_of(config_of()), print)
    said = str(error.value)
    assert said.startswith("model.moe.router.name: differs from the checkpoint of step 2: 'top_p' in ")
    assert re.search(r"\(changed keys: model\.moe\.router\.name, .* and \d+ more\)", said)
    assert len(said) < 500


@pytest.mark.parametrize("damage", [None, b"\xff", b"model: {", b"seed: 0\nseed: 1\n", b"[]"])
def test_a_lost_config_is_read_from_the_checkpoint(tmp_path: Path, damage: bytes | None) -> None:
    if damage is not None:
        (tmp_path / "config.yaml").write_bytes(damage)
    told: list[str] = []
    config = binding.read_run_config(tmp_path, state_of(config_of()), told.append)
    assert config.model == config_of().model
    assert len(told) == 1
    assert "its recipe is read from the checkpoint of step 2" in told[0]
    binding.check_resumed_recipe(tmp_path, state_of(config_of()), config_of(), told.append)
    assert "written again from this recipe" in told[1]
    with pytest.raises(ConfigError, match=r"model\.heads: differs .* 4 in the recipe, 2 in the checkpoint"):
        binding.check_resumed_recipe(tmp_path, state_of(config_of()), config_of("model.heads=4"), told.append)


def test_a_checkpoint_without_a_config_opens_with_one_line(tmp_path: Path) -> None:
    state = state_of(config_of())
    del state["config"]
    for check in (
        lambda say: binding.read_run_config(tmp_path, state, say),
        lambda say: binding.check_resumed_recipe(tmp_path, state, config_of(), say),
    ):
        (tmp_path / "config.yaml").unlink(missing_ok=True)
        told: list[str] = []
        with pytest.raises(ConfigError, match="put the file back"):
            check(told.append)
        write_config(tmp_path, config_of())
        check(told.append)
        assert len(told) == 1
        assert "before checkpoints held their config" in told[0]
    with pytest.raises(ConfigError, match=r"optim\.lr: differs"):
        binding.check_resumed_recipe(tmp_path, state, config_of("optim.lr=1"), told.append)


def test_before_training_only_the_model_is_bound_and_the_rest_is_told(tmp_path: Path) -> None:
    state = state_of(config_of(), 0, None)
    write_config(tmp_path, config_of("optim.lr=0.5"))
    told: list[str] = []
    assert binding.read_run_config(tmp_path, state, told.append).optim.lr == 0.5
    assert "optim.lr: 0.5 in" in told[0]
    write_config(tmp_path, config_of("model.heads=4"))
    with pytest.raises(ConfigError, match=r"model\.heads"):
        binding.read_run_config(tmp_path, state, told.append)


@pytest.mark.parametrize(
    "words",
    [
        ["eval"], ["generate", "She"], ["chat"], ["upcycle", "OUT", "--recipe", "tiny"], ["plan"], ["config"],
        ["train"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_every_door_refuses_an_edited_config(
    copied: Path, tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = copied / "config.yaml"
    file.write_text(file.read_text().replace("heads: 2", "heads: 4", 1))
    rest = [str(tmp_path / "out") if word == "OUT" else word for word in words[1:]]
    assert hmoe([words[0], str(copied), *rest]) == 2
    captured = capsys.readouterr()
    assert "model.heads: differs from the checkpoint of step 2: 4 in" in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


def test_training_writes_a_lost_or_edited_config_again(
    trained: Path, copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Path(shutil.copytree(trained, tmp_path / "whole"))
    run(whole, "train.steps=4", *MINI)
    file = copied / "config.yaml"
    file.unlink()
    with pytest.raises(ConfigError, match=r"optim\.lr: differs"):
        run(copied, "train.steps=3", *MINI, "optim.lr=0.5")
    assert not file.exists()
    run(copied, "train.steps=3", *MINI)
    assert "config.yaml is lost or damaged: written again" in capsys.readouterr().out
    file.write_text(file.read_text().replace("heads: 2", "heads: 4", 1))
    run(copied, "train.steps=4", *MINI)
    assert "4 in" in capsys.readouterr().out
    assert file.read_bytes() == (whole / "config.yaml").read_bytes()
    assert digests(copied).keys() == digests(whole).keys()
    assert {k: v for k, v in digests(copied).items() if "metrics" not in k} == {
        k: v for k, v in digests(whole).items() if "metrics" not in k
    }


def test_a_run_folder_is_a_recipe_that_continues_itself(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hmoe(["train", str(copied), "train.steps=3"]) == 0
    assert (copied / "checkpoints" / "step-00000003").is_dir()
    (copied / "config.yaml").unlink()
    assert hmoe(["train", f"{copied}/config.yaml", "--run", str(copied)]) == 2
    assert "budget" in capsys.readouterr().err
    assert (
        hmoe(["train", f"{copied}/config.yaml", "--run", str(copied), "train.steps=3", "train.device=cpu"])
        == 0
    )
    assert recipes.read_recipe(str(copied / "config.yaml"))[1].train.steps == 3


def test_another_kind_of_device_is_refused(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "hmoe.train.environment.describe_environment", lambda device, _: {"device": f"not {device}"}
    )
    with pytest.raises(
        ConfigError, match=r"train\.device = cpu: is not cpu here, the run was trained on cpu"
    ):
        run(copied, "train.steps=4", *MINI)


def test_bit_flips_keep_the_meaning_or_are_told(copied: Path) -> None:
    """Of config.yaml; those of checkpoints and logs have tests of their own."""
    rng = random.Random(2)
    config, _, _, state = open_run(copied, print)
    file, outcomes = copied / "config.yaml", set()
    good = file.read_bytes()
    for _ in range(60):
        place = rng.randrange(len(good))
        file.write_bytes(good[:place] + bytes([good[place] ^ 1 << rng.randrange(8)]) + good[place + 1 :])
        told: list[str] = []
        try:
            read = binding.read_run_config(copied, state, told.append)
        except ConfigError as error:
            outcomes.add("refused")
            assert "differs from the checkpoint" in str(error)
            continue
        outcomes.add("told" if told else "free key")
        assert recipes.list_changed_values(config, read) == {}
    assert {"told", "free key"} <= outcomes


def test_training_a_finished_run_tells_of_damaged_logs(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = copied / "metrics.jsonl"
    log.write_bytes(log.read_bytes().replace(b'"tokens"', b'"tokans"', 1))
    assert hmoe(["train", str(copied)]) == 0
    out = capsys.readouterr().out
    assert "metrics.jsonl or timing.jsonl: changed since step" in out
    assert "finished already" in out
