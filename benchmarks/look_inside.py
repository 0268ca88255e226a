"""What does looking inside cost? Tracing against plain scoring, memory over 1M and 10M tokens, a report of 20 runs.

    python benchmarks/look_inside.py trace RUN                     tokens/s of a trace and of plain scoring, their ratio
    python benchmarks/look_inside.py memory RUN [--tokens 1e6 1e7] peak memory of `hmoe inspect`, a process per size
    python benchmarks/look_inside.py report RUN... [--copies 20]   seconds and bytes of the page about so many runs

Rounds of both alternate; a ratio is the median over rounds of the ratio in a round.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from hmoe.analyze.documents import read_split
from hmoe.analyze.reading import WindowBatch, WindowReader, trace_windows
from hmoe.analyze.token_types import describe_token_types
from hmoe.bench.measure import describe_machine, save_result
from hmoe.data.open import open_data
from hmoe.model.attention import Sequences
from hmoe.model.trace import score_targets
from hmoe.model.transformer import Transformer
from hmoe.runs.open_model import open_model

_MEASURED = """
import json, resource, sys
from hmoe.cli.main import run_command_line
code = run_command_line(sys.argv[1:])
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024), file=sys.stderr)
sys.exit(code)
"""


@torch.no_grad()
def score_plainly(model: Transformer, batch: WindowBatch) -> None:
    """The likelihood of every token, and nothing of the routers."""
    tokens_BL = torch.from_numpy(batch.tokens_BL)
    x_BLD, _ = model.hidden(tokens_BL, Sequences())
    score_targets(model, x_BLD[:, :-1].flatten(0, 1), tokens_BL[:, 1:].flatten())


def time_tracing(run: Path, rounds: int) -> dict[str, Any]:
    opened = open_model(run, print)
    assert opened.run is not None
    index = open_data(opened.run)
    types = describe_token_types(opened.tokenizer, opened.model.config.vocab)
    reader = WindowReader(opened.context_length, types, opened.tokenizer.separator, [])
    batches = list(reader.cut_windows(read_split(index, "valid", index.packing)))
    rates: dict[str, list[float]] = {"plain": [], "trace": []}
    for turn in range(rounds + 1):
        for name, read in (("plain", score_plainly), ("trace", trace_windows)):
            start = time.perf_counter()
            for batch in batches:
                read(opened.model, batch)
            if turn:  # the first round warms up
                rates[name].append(reader.counts.tokens / (time.perf_counter() - start))
    ratios = [traced / plain for traced, plain in zip(rates["trace"], rates["plain"], strict=True)]
    return {
        "model": opened.name,
        "tokens": reader.counts.tokens,
        "plain_tokens_per_second": median(rates["plain"]),
        "trace_tokens_per_second": median(rates["trace"]),
        "ratio": median(ratios),
        "ratios": ratios,
    }


def measure_memory(run: Path, sizes: list[float]) -> dict[str, Any]:
    peaks = {}
    novels = Path(__file__).parents[1] / "src/hmoe/data/corpus/austen.jsonl.xz"
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            text = Path(folder, "text.jsonl")
            _write_copies(novels, text, int(4 * size))  # about four bytes a token
            words = ["inspect", str(run), "--text", str(text), "--sample", "0", "--figures", "none"]
            words += ["--tokens", str(int(size)), "--out", str(Path(folder, "out")), "--json"]
            start = time.perf_counter()
            process = subprocess.run(
                [sys.executable, "-c", _MEASURED, *words], capture_output=True, text=True, check=False
            )
            assert process.returncode == 0, process.stderr[-2000:]
            tokens = json.loads(process.stdout)["text"]["tokens"]
            peak = json.loads(process.stderr.splitlines()[-1])
            peaks[str(int(size))] = {
                "tokens": tokens,
                "peak_bytes": peak,
                "seconds": time.perf_counter() - start,
            }
    values = [entry["peak_bytes"] for entry in peaks.values()]
    return {"sizes": peaks, "growth_bytes": values[-1] - values[0]}


def _write_copies(source: Path, text: Path, num_bytes: int) -> None:
    """Write documents again and again until there are so many bytes."""
    import lzma

    content = lzma.decompress(source.read_bytes())
    with text.open("wb") as file:
        while file.tell() < num_bytes:
            file.write(content)


def time_report(runs: list[Path], copies: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        for i in range(copies):
            run = runs[i % len(runs)]
            shutil.copytree(run, Path(folder, f"copy{i}-{run.name}"))
        names = [f"copy{i}={Path(folder, f'copy{i}-{runs[i % len(runs)].name}')}" for i in range(copies)]
        page = Path(folder, "page.html")
        start = time.perf_counter()
        words = [sys.executable, "-m", "hmoe", "report", *names, "--out", str(page)]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        return {"runs": copies, "seconds": time.perf_counter() - start, "bytes": page.stat().st_size}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("trace", "memory", "report"))
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", nargs="+", type=float, default=[1e6, 1e7])
    parser.add_argument("--copies", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    result = {
        "trace": lambda: time_tracing(arguments.runs[0], arguments.rounds),
        "memory": lambda: measure_memory(arguments.runs[0], arguments.tokens),
        "report": lambda: time_report(arguments.runs, arguments.copies),
    }[arguments.what]()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    record = {
        "machine": describe_machine("cpu"),
        "threads": torch.get_num_threads(),
        "own_peak_bytes": peak,
        **result,
    }
    print(save_result(arguments.out, f"look-inside-{arguments.what}", record))


if __name__ == "__main__":
    main()
