"""The nearest choice that an error names is one that is accepted."""

import re

import pytest

from hmoe import ConfigError
from hmoe.cli.main import run_command_line
from hmoe.config import recipes
from hmoe.config.key_names import OTHER_NAMES
from hmoe.config.recipe_errors import list_recipe_keys
from hmoe.config.run import RunConfig

CHOICE = ["model.moe.router.name=expert_choice", "train.sample_every=0"]


def message(overrides: list[str]) -> str:
    with pytest.raises(ConfigError) as refused:
        recipes.read_recipe("tiny", overrides)
    return str(refused.value)


def value_of(config: RunConfig, key: str) -> object:
    found: object = config
    for part in key.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize(
    ("before", "wrong", "nearest"),
    [
        ([], "modle.dim", "model.dim"), ([], "lr", "optim.lr"), ([], "optim.steps", "train.steps"),
        ([], "train.lr", "optim.lr"), ([], "model.moe.router.kk", "model.moe.router.k"),
        (CHOICE, "model.moe.router.capacity", "model.moe.router.capacity_by"),
        (CHOICE, "model.moe.router.capacity_facto", "model.moe.router.capacity_factor"),
        (CHOICE, "model.moe.router.kapa", None), (CHOICE, "model.moe.router.renormalise", None),
        ([], "model.moe.router.capacity_factr", "model.moe.router.capacity_factor"),
    ],
)  # fmt: skip
def test_the_nearest_key_may_be_written(before: list[str], wrong: str, nearest: str | None) -> None:
    said = message([*before, f"{wrong}=true"])
    key = re.search(r"unknown key; nearest is (\S+)", said)
    assert key, said
    assert nearest in (None, key[1])
    config = recipes.read_recipe("tiny", before)[1]
    recipes.read_recipe(
        "tiny", [*before, f"{key[1]}={recipes.yaml.safe_dump(value_of(config, key[1])).splitlines()[0]}"]
    )


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["data.batch_tokens=100"], "data.batch_tokens"),
        (["data.batch_tokens=100", "data.micro_batches=4"], "data.batch_tokens"),
        (["model.vocab=10"], "model.vocab"),
        (["model.head_dim=3"], "model.head_dim"),
        (["model.dim=36", "model.heads=4"], "model.head_dim"),
        (["model.moe.router.name=expert_choice"], "train.sample_every"),
        (
            ["model.moe.widths={shape: arithmetic, total: 1001, experts: 4, multiple: 8}"],
            "model.moe.widths.total",
        ),
        (["model.moe.widths={shape: hybrid, total: 1000, experts: 5}"], "model.moe.widths.experts"),
    ],
)
def test_the_nearest_value_is_taken(overrides: list[str], key: str) -> None:
    nearest = message(overrides).rpartition("nearest is ")[2].split(" = ")[-1]
    recipes.read_recipe("tiny", [*overrides, f"{key}={nearest}"])


@pytest.mark.parametrize(
    "extra", ["model.moe.router.renormalize=true", "model.moe.router={renormalize: true}"]
)
def test_a_key_of_another_kind_is_told_what_this_kind_takes(extra: str) -> None:
    said = message([*CHOICE, extra])
    assert (
        "renormalize = True: does not belong to this kind of router; it takes capacity_factor, capacity_by, jitter"
        in said
    )


def test_a_switch_that_is_unknown_is_no_number_that_is_wrong() -> None:
    assert "model.moe.router.normalize: unknown key" in message(
        [*CHOICE, "model.moe.router={normalize: true}"]
    )
    assert "must not be true or false" in message(["model.moe.router={k: true}"])
    assert "must not be true or false" in message(["data.weights={a: true}"])


@pytest.mark.parametrize(
    ("words", "nearest"), [(["trian"], "train"), (["data", "prep"], "prepare"), (["preset"], "presets")]
)
def test_the_nearest_verb_exists(words: list[str], nearest: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(words) == 2
    said = capsys.readouterr().err
    verb = re.search("; nearest is ([a-z]+); see hmoe", said)
    assert verb, said
    assert verb[1] == nearest
    assert run_command_line([*words[:-1], verb[1], "--help"]) == 0


def test_a_verb_that_is_like_none_is_told_where_all_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["xyz"]) == 2
    assert capsys.readouterr().err == "hmoe: error: No such command 'xyz'; see hmoe -h\n"


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [("optim.learning_rate", "optim.lr"), ("train.batch_size", "data.batch_tokens"),
     ("model.moe.num_experts", "model.moe.widths")],
)  # fmt: skip
def test_names_of_other_trainers_lead_to_ours(wrong: str, nearest: str) -> None:
    assert f"{wrong}: unknown key; nearest is {nearest}" in message([f"{wrong}=3"])
    known = list_recipe_keys()
    assert set(OTHER_NAMES.values()) <= set(known)
    assert not set(OTHER_NAMES) & {key.rpartition(".")[2] for key in known}
