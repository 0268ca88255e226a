"""Library errors name arguments; the command line shows the flags of the verb that runs."""

import pytest
import typer

from hmoe import ConfigError
from hmoe.cli.flags import explain_error, find_command, list_flags, name_flags
from hmoe.cli.main import app, run_command_line

FLAGS = {
    "shard_size": "--shard-size",
    "out": "--out",
    "text": "--text",
    "with_code": "--with-code",
    "form": "--format",
}


@pytest.mark.parametrize(
    ("message", "arguments", "shown"),
    [
        ("shard_size = 5: must be a number", ["shard_size"], "--shard-size 5: must be a number"),
        ("out/a: is not empty; choose another `out`", ["out"], "out/a: is not empty; choose another --out"),
        ("out: is not empty; choose another `out`", ["out"], "out: is not empty; choose another --out"),
        ("with_code has no effect with form = mixtral", ["with_code", "form"],
         "--with-code has no effect with --format mixtral"),
        ("measured on a text; give `text`", ["text"], "measured on a text; give --text"),
        ("out.text: no such file; see text.", ["text"], "out.text: no such file; see --text."),
        ("plain-text: a name; text is empty", ["text"], "plain-text: a name; --text is empty"),
        ("data.path = x: `out` is unknown", [], "data.path = x: `out` is unknown"),
        ("with_code = 1: lower with_code or `with_code`", ["with_code"],
         "--with-code 1: lower --with-code or --with-code"),
        ("lr = 1: too large", ["lr"], "lr = 1: too large"),
    ],
)  # fmt: skip
def test_arguments_are_shown_as_flags(message: str, arguments: list[str], shown: str) -> None:
    assert name_flags(message, arguments, FLAGS) == shown


def test_flags_are_those_of_the_verb_that_runs() -> None:
    command = typer.main.get_command(app)
    export = find_command(command, ["export", "--shard-size", "5", "data"])
    assert list_flags(export)["form"] == "--format"
    assert "out" not in list_flags(export)
    assert list_flags(find_command(command, ["data", "prepare", "plan"]))["max_bad"] == "--max-bad"
    assert list_flags(find_command(command, ["upcycle"]))["inputs"] == "--text"
    assert list_flags(find_command(command, ["nothing"])) == list_flags(command)


def test_a_measurement_without_a_text_asks_for_the_flag_of_the_verb() -> None:
    from hmoe.surgery.build_run import RunOptions, _check_skip

    with pytest.raises(ConfigError, match="choice = widest: must be one of importance"):
        RunOptions("tiny", choice="widest")
    with pytest.raises(ConfigError) as refused:
        _check_skip(None, None, None)  # type: ignore[arg-type]
    command = find_command(typer.main.get_command(app), ["upcycle"])
    assert explain_error(refused.value, command) == (
        "--skip: which experts are weak is measured on a text; give --text"
    )


def test_a_verb_prints_its_flag(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object) -> None:
        raise ConfigError("memory = 0: too little", argument="memory")

    monkeypatch.setattr("hmoe.config.plan.make_plan", fail)
    assert run_command_line(["plan", "tiny"]) == 2
    assert capsys.readouterr().err == "hmoe: error: --memory 0: too little\n"
