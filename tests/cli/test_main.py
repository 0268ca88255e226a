"""Every verb has help, errors are one line and an exit code, and none of it is slow."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from hmoe.cli.flags import find_command
from hmoe.cli.main import app, run_command_line
from hmoe.errors import make_install_command

HELP = [[], ["presets"], ["train"], ["plan"], ["config"], ["eval"], ["generate"], ["chat"], ["serve"], ["info"],
        ["export"], ["import"], ["upcycle"], ["data"], ["data", "prepare"], ["data", "benchmarks"],
        ["data", "corpus"], ["bench"],
        ["bench", "layer"], ["bench", "step"], ["bench", "decode"], ["bench", "model"], ["bench", "tiles"],
        ["finetune"]]  # fmt: skip


@pytest.mark.parametrize("verb", HELP, ids=str)
def test_every_verb_has_help(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line([*verb, "--help"]) == 0
    assert "Usage: hmoe" in capsys.readouterr().out


@pytest.mark.parametrize("verb", [verb for verb in HELP if verb not in ([], ["data"], ["bench"])], ids=str)
def test_a_verb_is_in_the_file_of_its_name(verb: list[str]) -> None:
    name = "_".join(verb)
    file = "import_" if name == "import" else name  # a word that Python keeps for itself
    function = find_command(typer.main.get_command(app), verb).callback
    assert inspect.getmodule(inspect.unwrap(function)).__name__ == f"hmoe.cli.{file}"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "words", [["--help"], ["plan", "hmoe-0.4b-topp"], ["config", "tiny"], ["train", "tiny", "--dry-run"]]
)
def test_nothing_heavy_is_imported_for_it(words: list[str]) -> None:
    heavy = "[m for m in ('torch', 'numpy', 'transformers') if m in sys.modules]"
    code = f"import sys; from hmoe.cli.main import run_command_line as run; assert run({words}) == 0; print({heavy})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "error", [MemoryError("x"), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")]
)
def test_too_little_memory_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("hmoe.config.plan.make_plan", fail)
    assert run_command_line(["plan", "tiny"]) == 2
    assert capsys.readouterr().err.startswith("hmoe: error: not enough memory")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["tran"], 2, "No such command 'tran'"),
        (["plan"], 2, "Missing argument"),
        (["plan", "tinny"], 2, "nearest is tiny; see `hmoe presets`"),
        (["plan", "tiny", "model.dim=x"], 2, "model.dim = 'x'"),
        (["train", "tiny", "--rnu", "x"], 2, "rnu: unknown key"),
        (["eval", "/nowhere"], 2, "no such folder"),
        (["eval", "/nowhere", "--text-field", "x"], 2, "no effect without --text"),
        (["generate", "/nowhere", "x"], 2, "no such folder"),
        (["generate", "/nowhere", "x", "--temperature", "-1"], 2, "temperature = -1"),
        (["generate", "/nowhere", "\udce9"], 2, "not valid UTF-8"),
        (["plan", "a\nb"], 2, "no preset"),
        (["generate", "/nowhere", "x", "--max-tokens", "0"], 2, "greater than or equal to 1"),
        (["data", "prepare", "/nowhere", "--out", "/tmp/x"], 3, "no such file"),
        (["data", "prepare", "/nowhere", "--out", "/tmp/x", "--weight", "a"], 2, "must be domain=NUMBER"),
        (["data", "prepare", "/nowhere", "--out", "/tmp/x", "--tokenizer", "bpe:3"], 2, "bpe:8192"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(
    words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(words) == code
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert err.startswith("hmoe: error: ")


def test_a_working_directory_that_is_gone_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setattr(
        "hmoe.config.plan.make_plan", lambda *_, **__: Path.cwd()
    )  # as PyTorch does while it is imported
    code = run_command_line(["plan", "tiny"])
    assert (code, run_command_line(["--version"])) == (2, 0)  # what needs no folder goes on
    monkeypatch.chdir(tmp_path)
    assert "error: the working directory is gone; change to one that exists\n" in capsys.readouterr().err


def test_a_name_that_cannot_be_used_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["train", "tiny", "--dry-run", "data.path=caf\udce9"]) == 2
    assert run_command_line(["eval", "/nowhere/caf\udce9"]) == 2
    assert "/nowhere/caf\ufffd: no such folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "verb", "code", "message"),
    [
        (KeyboardInterrupt(), "plan", 130, "hmoe: interrupted\n"),
        (KeyboardInterrupt(), "serve", 0, ""),
        (KeyboardInterrupt(), "chat", 0, ""),
        (typer.Exit(3), "plan", 3, ""),
        (EOFError("x"), "plan", None, ""),
    ],
)
def test_no_exit_code_is_lost(
    raised: BaseException, verb: str, code: int | None, message: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def stop() -> None:
        raise raised

    stop.__name__ = verb

    command = next(c for c in app.registered_commands if (c.name or c.callback.__name__) == verb)  # type: ignore[union-attr]
    monkeypatch.setattr(command, "callback", stop)
    monkeypatch.setattr(command, "context_settings", {})
    if code is None:  # what nobody foresaw is no interrupt
        with pytest.raises(EOFError):
            run_command_line([verb])
        return
    assert run_command_line([verb]) == code
    assert capsys.readouterr().err == message


def test_a_closed_pipe_is_no_traceback() -> None:
    command = f"{sys.executable} -m hmoe config hmoe-3b-topk | head -1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert result.stderr == ""


def test_a_missing_extra_is_one_line_with_the_command(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"x")
    code = (
        "import sys; sys.modules['pyarrow'] = None; from hmoe.cli.main import run_command_line as run; "
        f"sys.exit(run(['data', 'prepare', {str(tmp_path)!r}, '--out', "
        f"{str(tmp_path / 'o')!r}, '--tokenizer', 'bytes']))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert (
        result.stderr == f"hmoe: error: parquet files need the data extra: {make_install_command('data')}\n"
    )
