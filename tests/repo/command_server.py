"""`hmoe` and `python` without the seconds of imports: one process that imported everything, and a child of it for each.

    python -m tests.repo.command_server FOLDER

writes FOLDER/hmoe and FOLDER/python, to be put first on PATH. These scripts pass their arguments, folder, environment
and streams to the process here, which forks: the child is a `hmoe` or `python` like any other, but that its modules are
there already and its corpus is short. This python knows -W, -c and the name of a file; `python -m` is the real one.
Where `import hmoe.x` costs time or fails is not seen here; tests/cli/test_main.py and the README's commands in
`.ci/run` are for that.
"""

import argparse
import atexit
import builtins
import contextlib
import gc
import json
import lzma
import os
import socket
import sys
import traceback
import types
import warnings
from collections.abc import Callable
from pathlib import Path

CLIENT = """
import json, os, signal, socket, sys
asked = socket.socket(socket.AF_UNIX)
asked.connect(os.path.join(os.path.dirname(sys.argv[0]), "socket"))
words = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(asked, [len(words).to_bytes(8, "big")], [0, 1, 2])
asked.sendall(words)
child = int.from_bytes(asked.recv(8), "big")
for name in (signal.SIGINT, signal.SIGTERM):
    signal.signal(name, lambda number, _: os.kill(child, number))
sys.exit(int.from_bytes(asked.recv(1), "big"))
"""
BOOKS_SHARE = 8  # one of so many documents of the embedded corpus is in the short one
LETTERS = 4000  # that remain of each
MEASURED_TOKENS = 1024  # of a text, on which `hmoe upcycle` measures units and losses
BATCH_TOKENS = 1024  # of the preset tiny


def import_everything() -> None:
    import hmoe.data.prepare
    import hmoe.evaluate.perplexity
    import hmoe.hub.export
    import hmoe.hub.modeling
    import hmoe.serve.engine.engine
    import hmoe.train.loop  # noqa: F401


def shorten_corpus(folder: Path) -> None:
    """A part of the embedded corpus: commands that read all of it cost seconds, and show no more."""
    from hmoe.data import corpus

    if not (folder / "austen.jsonl.xz").exists():
        write_short_corpus(folder, Path(corpus.__file__).parent)

    class Files:
        """What importlib.resources is to the corpus."""

        files = staticmethod(lambda package: folder)
        as_file = staticmethod(contextlib.nullcontext)

    corpus.resources = Files  # type: ignore[assignment]


def write_short_corpus(folder: Path, place: Path) -> None:
    with lzma.open(place / "austen.jsonl.xz", "rt") as whole:
        documents = [json.loads(line) for line in whole.readlines()[::BOOKS_SHARE]]
    with lzma.open(folder / "austen.jsonl.xz", "wt") as short:
        short.writelines(json.dumps({**d, "text": d["text"][:LETTERS]}) + "\n" for d in documents)


def shorten_work() -> None:
    """Fewer tokens for a step of the preset tiny, and for what `hmoe upcycle` and `hmoe bench machine` measure."""
    from hmoe.bench import machine
    from hmoe.cli import upcycle
    from hmoe.config import recipes
    from hmoe.surgery import build_run

    machine.WIDTHS, machine._TOKENS = {"cpu": (16, 64)}, {"cpu": MEASURED_TOKENS}
    upcycle._LARGEST_LOSS_TOKENS = MEASURED_TOKENS
    cut = build_run.cut_measured_texts
    build_run.cut_measured_texts = lambda tokenizer, texts, length, most, begin: cut(
        tokenizer, texts, length, min(most, MEASURED_TOKENS), begin
    )
    read = recipes.parse_tree

    def read_shorter(text: str, name: str) -> object:
        tree = read(text, name)
        if name == "tiny":
            tree["data"]["batch_tokens"] = BATCH_TOKENS
        return tree

    recipes.parse_tree = read_shorter  # type: ignore[assignment]


def shorten_processes(folder: Path) -> None:
    """Let the processes that `--processes` starts, which are no children of this one, read and do as little."""
    from hmoe.cli import processes

    real = processes.launch_processes
    processes.launch_processes = lambda command, options: real(
        [sys.executable, __file__, str(folder), "--process", *command[4:]], options
    )


def run_command(words: list[str], folder: str, environment: dict[str, str], streams: list[int]) -> None:
    """In a child: never returns."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - the old ones remember what kind of file they were
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
    sys.argv = words
    end_child(run_python if words[0] == "python" else run_hmoe)


def run_hmoe() -> None:
    from hmoe.__main__ import main

    main()


def run_python() -> None:
    """Run `python [-W FILTER]... (-c CODE | FILE)`, and as Python does: under the name of the main module."""
    parser = argparse.ArgumentParser("python")
    parser.add_argument("-W", action="append", default=[])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("-c")
    what.add_argument("file", nargs="?")
    options = parser.parse_args()
    warnings.resetwarnings()
    for text in options.W:
        action, _, category = text.partition("::")
        warnings.simplefilter(action, getattr(builtins, category or "Warning"))  # type: ignore[arg-type]
    sys.argv = [options.file or "-c"]
    sys.path.insert(0, str(Path(options.file).parent.resolve()) if options.file else "")
    code = options.c if options.c is not None else Path(options.file).read_text()
    main = types.ModuleType("__main__")
    main.__file__ = options.file
    sys.modules["__main__"] = main
    exec(compile(code, sys.argv[0], "exec"), main.__dict__)


def end_child(main: Callable[[], None]) -> None:
    """End this process as Python ends, but leave its memory alone: to tear it down would copy all that is shared."""
    code: object = 1
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code if isinstance(code, int) else 1)


def answer(asked: socket.socket) -> None:
    """Start what is asked for, and tell its process and at last its exit code."""
    size, streams, _, _ = socket.recv_fds(asked, 8, 3)
    words = b""
    while len(words) < int.from_bytes(size, "big"):
        words += asked.recv(1 << 16)
    child = os.fork()
    if child == 0:
        asked.close()
        run_command(*json.loads(words), streams)
    for stream in streams:
        os.close(stream)
    asked.sendall(child.to_bytes(8, "big"))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(BrokenPipeError):  # nobody may wait for the end
        asked.sendall((code if code >= 0 else 128 - code).to_bytes(1, "big"))


def serve(folder: Path) -> None:
    import_everything()
    shorten_corpus(folder)
    shorten_work()
    shorten_processes(folder)
    gc.collect()
    gc.freeze()  # a child that collects garbage would copy what it shares
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(folder / "socket"))
    listening.listen()
    (folder / "client.py").write_text(CLIENT)
    modules = f'[ "$1" = -m ] && exec "{sys.executable}" "$@"\n'
    for name, first in (("hmoe", ""), ("python", modules)):
        words = f'exec "{sys.executable}" -IS "{folder}/client.py" {name} "$@"'
        (folder / name).write_text(f"#!/bin/sh\n{first}{words}\n")
        (folder / name).chmod(0o755)
    print("ready", flush=True)
    while True:
        asked, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            answer(asked)
            os._exit(0)
        asked.close()
        with contextlib.suppress(ChildProcessError):  # none left
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


if __name__ == "__main__":
    short = Path(sys.argv[1])
    if sys.argv[2:3] == ["--process"]:
        shorten_corpus(short)
        shorten_work()
        sys.argv = ["hmoe", *sys.argv[3:]]
        run_hmoe()
    serve(short)
