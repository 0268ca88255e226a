"""The command line: one function per verb. torch is imported inside the verbs, so `hmoe --help` is instant."""

import difflib
import os
import re
import sys
from typing import Any

import typer

from hmoe.cli import data_prepare, eval, export, finetune, generate, serve, train
from hmoe.cli.app import app, say
from hmoe.cli.bench import app as bench_app
from hmoe.cli.flags import find_command, list_flags, name_flags
from hmoe.cli.interrupts import INTERRUPTS, interrupted_code
from hmoe.errors import CheckpointError, ConfigError, DataError, HMoEError

__all__ = ["app", "data_prepare", "eval", "export", "finetune", "generate", "run", "serve", "train"]

app.add_typer(bench_app, name="bench")


def run(arguments: list[str]) -> int:
    """Run the command line; errors are one line on stderr and the exit code of `hmoe.errors`."""
    try:
        code = _invoke(arguments)
    except KeyboardInterrupt:
        return _interrupted(arguments)
    except Exception as error:
        if INTERRUPTS.came:  # a library made an error of its own of the interrupt
            return _interrupted(arguments)
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(error.ctx.get_help())  # type: ignore[attr-defined]
            return 2
        line, code = _explain(error, arguments)
        if not line:
            raise
        say(line)
    failure = getattr(sys.stdout, "failure", None)
    if failure is not None:
        say(f"error: standard output: {failure.strerror}; not all that was printed is there")
    return code or (CheckpointError.exit_code if failure is not None else 0)


def _invoke(arguments: list[str]) -> int:
    """Not by the parser's own `main`, which makes other errors of interrupts, closed pipes and ends of files."""
    command = typer.main.get_command(app)
    try:
        with command.make_context("hmoe", list(arguments)) as context:
            command.invoke(context)
    except typer.Exit as ended:
        return ended.exit_code
    if sys.stdout is not None:
        sys.stdout.flush()
    return 0


def _interrupted(arguments: list[str]) -> int:
    code = interrupted_code(arguments)
    if code:
        say("interrupted")
    return code


def _explain(error: Exception, arguments: list[str]) -> tuple[str, int]:
    """The line that says what went wrong, and the exit code; an empty line for what nobody foresaw."""
    if isinstance(error, HMoEError):
        flags = list_flags(find_command(typer.main.get_command(app), arguments)) if error.arguments else {}
        return f"error: {name_flags(str(error), error.arguments, flags)}", error.exit_code
    if isinstance(error, OSError):  # a full disk, a folder that may not be written
        kind = DataError if arguments[:1] == ["data"] else CheckpointError
        return f"error: {_text(error.filename) or 'input/output'}: {error.strerror or error}", kind.exit_code
    if isinstance(error, UnicodeEncodeError) and any("\ud800" <= c <= "\udfff" for c in error.object):
        return f"error: {error.object}: a name that is not UTF-8 cannot be used here", ConfigError.exit_code
    if _out_of_memory(error):
        return f"error: not enough memory: {error}"[:300], ConfigError.exit_code
    if hasattr(error, "format_message"):  # one of the parser's usage errors
        return f"error: {_usage_line(error)}", 2
    return "", 1


def _usage_line(error: Any) -> str:
    """What the parser says, with the nearest verb and the help that tells more."""
    context, line = getattr(error, "ctx", None), " ".join(error.format_message().split()).rstrip(".")
    path = context.command_path if context is not None else "hmoe"
    wrong = re.fullmatch("No such command '(.*)'", line)
    if wrong and context is not None:
        line += f"; nearest is {difflib.get_close_matches(wrong[1], context.command.commands, 1, 0)[0]}"
    return f"{line}; see {path} --help"


def _text(name: Any) -> str:
    return os.fsdecode(name) if isinstance(name, str | bytes) else ""


def _out_of_memory(error: Exception) -> bool:
    """Python's own, CUDA's by its name, and the RuntimeError of PyTorch's CPU allocator."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )
