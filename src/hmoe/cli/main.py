"""The command line: its verbs, and how each ends.

torch is imported inside the verbs, so that `hmoe --help` is instant.
"""

import difflib
import os
import re
import sys
from typing import Annotated, Any

import typer
from typer.completion import shell_complete

from hmoe import __version__
from hmoe.cli.arguments import OVERRIDES
from hmoe.cli.bench_decode import time_decoding
from hmoe.cli.bench_layer import time_layer
from hmoe.cli.bench_machine import measure_this_machine
from hmoe.cli.bench_model import time_model
from hmoe.cli.bench_step import time_step
from hmoe.cli.bench_tiles import time_tile_shapes
from hmoe.cli.chat import chat_with_model
from hmoe.cli.compare import compare_runs
from hmoe.cli.config import print_recipe
from hmoe.cli.data_benchmarks import write_benchmarks_folder
from hmoe.cli.data_corpus import write_corpus_folder
from hmoe.cli.data_prepare import prepare_data_folder
from hmoe.cli.eval import evaluate_folder
from hmoe.cli.export import export_to_folder
from hmoe.cli.finetune import finetune_to_folder
from hmoe.cli.flags import explain_error, find_command
from hmoe.cli.generate import continue_prompt
from hmoe.cli.help import SETTINGS, HelpGroup, RootGroup, VerbTyper
from hmoe.cli.import_ import import_to_run
from hmoe.cli.info import print_info
from hmoe.cli.inspect import inspect_folder
from hmoe.cli.interrupts import INTERRUPTS, get_interrupted_code
from hmoe.cli.output import print_note
from hmoe.cli.plan import plan_recipe
from hmoe.cli.presets import print_presets
from hmoe.cli.report import write_report
from hmoe.cli.serve import serve_model
from hmoe.cli.streams import OutputStream, write_log
from hmoe.cli.sweep import sweep_grid, sweep_plan
from hmoe.cli.sweep_families import sweep_ablation, sweep_families, sweep_isoflop, sweep_tuning
from hmoe.cli.train import train_recipe
from hmoe.cli.upcycle import upcycle_to_run
from hmoe.cli.waiting import WaitingNote
from hmoe.errors import CheckpointError, ConfigError, DataError, DistributedError, HMoEError, PeerError

_COMPLETION = "_HMOE_COMPLETE"  # set by the shell that asks for completions
app = VerbTyper(
    cls=RootGroup, no_args_is_help=True, suggest_commands=False, context_settings=SETTINGS,
    rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Pretrain, evaluate and look inside language models whose experts differ in size.",
)  # fmt: skip
_data = VerbTyper(
    cls=HelpGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Fetch text, and turn text into token shards.",
)
_bench = VerbTyper(
    cls=HelpGroup, no_args_is_help=True, rich_markup_mode=None,
    help="Measure layer, step, decode, model, machine, tiles.\n\nSide by side, in dated files.",
)  # fmt: skip

_sweep = VerbTyper(
    cls=HelpGroup, no_args_is_help=True, rich_markup_mode=None,
    help="Train many recipes and compare them.\n\nA queue that survives kills.",
)  # fmt: skip


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"hmoe {__version__}")
        raise typer.Exit


@app.callback()
def _take_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


# The first screen has an order of its own, that of GROUPS in first_screen.py.
app.command("eval")(evaluate_folder)
app.command("inspect")(inspect_folder)
app.command("finetune")(finetune_to_folder)
app.command("export")(export_to_folder)
app.command("import", context_settings=OVERRIDES)(import_to_run)
app.command("upcycle", context_settings=OVERRIDES)(upcycle_to_run)
app.command("serve")(serve_model)
app.command("chat")(chat_with_model)
app.command("generate")(continue_prompt)
app.command("train", context_settings=OVERRIDES)(train_recipe)
app.command("compare")(compare_runs)
app.command("report")(write_report)
app.command("plan", context_settings=OVERRIDES)(plan_recipe)
app.command("config", context_settings=OVERRIDES)(print_recipe)
app.command("info")(print_info)
app.command("presets")(print_presets)
app.add_typer(_data, name="data")
app.add_typer(_bench, name="bench")
app.add_typer(_sweep, name="sweep")
_data.command("prepare")(prepare_data_folder)
_data.command("corpus")(write_corpus_folder)
_data.command("benchmarks")(write_benchmarks_folder)
_sweep.command("grid", context_settings=OVERRIDES)(sweep_grid)
_sweep.command("families", context_settings=OVERRIDES)(sweep_families)
_sweep.command("tuning", context_settings=OVERRIDES)(sweep_tuning)
_sweep.command("isoflop", context_settings=OVERRIDES)(sweep_isoflop)
_sweep.command("ablation", context_settings=OVERRIDES)(sweep_ablation)
_sweep.command("run", context_settings=OVERRIDES)(sweep_plan)
_bench.command("layer")(time_layer)
_bench.command("step", context_settings=OVERRIDES)(time_step)
_bench.command("decode")(time_decoding)
_bench.command("model")(time_model)
_bench.command("machine")(measure_this_machine)
_bench.command("tiles")(time_tile_shapes)


def run_command_line(arguments: list[str]) -> int:
    """Run a command line and return its exit code; an error is one line on stderr and the code of its class."""
    try:
        code = _invoke(arguments)
    except KeyboardInterrupt:
        return _end_interrupted(arguments)
    except Exception as error:
        if INTERRUPTS.came:  # a library made an error of its own of the interrupt
            return _end_interrupted(arguments)
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(error.ctx.get_help())  # type: ignore[attr-defined]
            return 0
        line, code = _explain(error, arguments)
        if not line:
            raise
        if isinstance(error, DistributedError) and OutputStream.log is not None:
            write_log(f"hmoe: {line}\n")  # the launcher tells which process it was
        elif not isinstance(error, PeerError):  # which another process has told
            print_note(line)
    failure = getattr(sys.stdout, "failure", None)  # of an OutputStream
    if failure is not None:
        print_note(f"error: standard output: {failure.strerror}; not all that was printed is there")
    return code or (CheckpointError.exit_code if failure is not None else 0)


def _invoke(arguments: list[str]) -> int:
    """Run a verb and return its exit code.

    Not by the parser's own `main`, which makes other errors of interrupts, closed pipes and ends of files.
    """
    command = typer.main.get_command(app)
    if instruction := os.environ.get(_COMPLETION):
        return shell_complete(command, {}, "hmoe", _COMPLETION, instruction)
    try:
        with WaitingNote(arguments), command.make_context("hmoe", list(arguments), obj=arguments) as context:
            command.invoke(context)
    except typer.Exit as ended:
        return ended.exit_code
    except SystemExit as ended:  # of the options for shell completion
        return int(ended.code or 0)
    if sys.stdout is not None:
        sys.stdout.flush()
    return 0


def _end_interrupted(arguments: list[str]) -> int:
    code = get_interrupted_code(arguments)
    if code:
        print_note("interrupted")
    return code


def _explain(error: Exception, arguments: list[str]) -> tuple[str, int]:
    """Return the line that says what went wrong, and the exit code; an empty line for what nobody foresaw."""
    if isinstance(error, HMoEError):
        command = find_command(typer.main.get_command(app), arguments)
        return f"error: {explain_error(error, command)}", error.exit_code
    if isinstance(error, FileNotFoundError) and _has_lost_its_folder():
        return "error: the working directory is gone; change to one that exists", ConfigError.exit_code
    if isinstance(error, OSError):  # a full disk, a folder that may not be written
        kind = DataError if arguments[:1] == ["data"] else CheckpointError
        return (
            f"error: {_decode_name(error.filename) or 'input/output'}: {error.strerror or error}",
            kind.exit_code,
        )
    if isinstance(error, UnicodeEncodeError) and any("\ud800" <= c <= "\udfff" for c in error.object):
        return f"error: {error.object}: a name that is not UTF-8 cannot be used here", ConfigError.exit_code
    if _is_out_of_memory(error):
        return f"error: not enough memory: {error}"[:300], ConfigError.exit_code
    if hasattr(error, "format_message"):  # one of the parser's usage errors
        return f"error: {_explain_usage(error)}", 2
    return "", 1


def _explain_usage(error: Any) -> str:
    """Return what the parser says, with the nearest verb and the help that tells more."""
    context, line = getattr(error, "ctx", None), " ".join(error.format_message().split()).rstrip(".")
    path = context.command_path if context is not None else "hmoe"
    wrong = re.fullmatch("No such command '(.*)'", line)
    if wrong and context is not None:
        nearest = difflib.get_close_matches(wrong[1], context.command.commands, 1, 0.6)
        line += f"; nearest is {nearest[0]}" if nearest else ""
    return f"{line}; see {path} -h"


def _has_lost_its_folder() -> bool:
    try:
        os.getcwd()
    except OSError:
        return True
    return False


def _decode_name(name: Any) -> str:
    return os.fsdecode(name) if isinstance(name, str | bytes) else ""


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: Python's error, CUDA's by its name, or that of PyTorch's CPU allocator."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )
