"""The command line: one function per verb. torch is imported inside the verbs, so `hmoe --help` is instant."""

import os
import sys

import typer

from hmoe.bench.verbs import app as bench_app
from hmoe.cli import data, evaluate, finetune, hub, serve, text, train
from hmoe.cli.base import app, say
from hmoe.errors import CheckpointError, ConfigError, DataError, HMoEError

__all__ = ["app", "data", "evaluate", "finetune", "hub", "run", "serve", "text", "train"]

app.add_typer(bench_app, name="bench")


def run(arguments: list[str]) -> int:
    """Run the command line; errors are one line on stderr and the exit code of `hmoe.errors`."""
    command = typer.main.get_command(app)
    try:
        command.main(arguments, prog_name="hmoe", standalone_mode=False)
        sys.stdout.flush()
    except HMoEError as error:
        say(f"error: {error}")
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except typer.Exit as ended:
        return ended.exit_code
    except OSError as error:  # a full disk, a folder that may not be written
        say(f"error: {error.filename or 'input/output'}: {error.strerror or error}")
        return (DataError if arguments[:1] == ["data"] else CheckpointError).exit_code
    except Exception as error:
        if _out_of_memory(error):
            say(f"error: not enough memory: {error}"[:300])
            return ConfigError.exit_code
        if not hasattr(error, "format_message"):  # not one of the parser's usage errors
            raise
        say(f"error: {' '.join(error.format_message().split())}; see hmoe {' '.join(arguments[:1])} --help")
        return 2
    return 0


def _out_of_memory(error: Exception) -> bool:
    """Python's own, CUDA's by its name, and the RuntimeError of PyTorch's CPU allocator."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )
