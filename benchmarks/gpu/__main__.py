"""Everything to learn from ten minutes on a GPU: right? as fast as it should be? where does the time go?

    make gpu [PYTHON=python3] [STAGES=0,4]
    python -m benchmarks.gpu [--stages 0,4] [--out DIR] [--dry-run]

Eight stages in turn, each a process with its own time limit, so that a failure or a hang costs only itself: 0
the machine's limits, 1 the tests that need a GPU, 2 every tile shape against float64, 3 memory and race
checks, 4 every kernel and tile shape timed, 5 whole layers, 6 training steps, 7 training end to end. A line
for each case as it ends, a table, and one JSON file in OUT (benchmarks/results if unset), beside it gpu.log
and suite.log with what the stages print to stderr; 470 seconds in all, of which stage 4 gives way first.
--dry-run: the same code on a CPU, tiny, in Triton's interpreter. Needs torch, triton, numpy and pytest;
stages 6 and 7 also pydantic and its companions.
"""

import argparse
import contextlib
import datetime
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
WHOLE_SECONDS = 470.0
STAGES: tuple[tuple[str, float], ...] = (  # module, seconds at most
    ("facts", 30), ("suite", 80), ("correct", 90), ("races", 60), ("kernels", 110), ("layer_race", 60),
    ("trainer", 120), ("end_to_end", 50),
)  # fmt: skip
GIVES_WAY = 4  # this stage's limit is what those after it leave


def limit_seconds(stage: int, chosen: list[int], left: float) -> float:
    """Return the seconds for a stage, when `left` are left for it and all after it."""
    later = sum(STAGES[other][1] for other in chosen if other > stage) if stage <= GIVES_WAY else 0.0
    own = STAGES[stage][1]
    return max(min(own, left - later, left), 0.0) if stage == GIVES_WAY else max(min(own, left), 0.0)


def run_stage(stage: int, seconds: float, arguments: argparse.Namespace) -> str:
    """Run a stage in a process of its own, and return how it ended.

    A process whose device is lost is followed by another, which goes on with the next case.
    """
    environment = (
        os.environ | {"PYTHONUNBUFFERED": "1"} | ({"TRITON_INTERPRET": "1"} if arguments.dry_run else {})
    )
    deadline = time.monotonic() + seconds
    for _ in range(6):
        left = deadline - time.monotonic()
        if left < 1:
            return "no time"
        words = ["--child", str(stage), "--seconds", str(left), "--out", str(arguments.out)] + [
            "--dry-run"
        ] * arguments.dry_run
        with (arguments.out / "gpu.log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.gpu", *words],
                cwd=ROOT,
                env=environment,
                stderr=log,
                start_new_session=True,
            )
        try:
            code = process.wait(timeout=left)
        except subprocess.TimeoutExpired:
            return "time limit"
        finally:
            _end_group(process)
        if code != 75:
            return (
                "ended"
                if code == 0
                else f"exit code {code}: {' '.join((arguments.out / 'gpu.log').read_text()[-300:].split())}"
            )
    return "device lost six times"


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    """Kill the stage's process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_child(arguments: argparse.Namespace) -> int:
    """Run the cases of one stage: what the process of a stage does."""
    from benchmarks.gpu.setting import Setting, run_cases

    setting = Setting(arguments.child, arguments.dry_run, arguments.seconds, arguments.out, time.monotonic())
    cases = importlib.import_module(f"benchmarks.gpu.{STAGES[arguments.child][0]}").cases(setting)
    return run_cases(setting, cases)


def last_records(journal: Path) -> list[dict[str, Any]]:
    """Return the last record of every case; one that only began hung, or took its process along."""
    last: dict[tuple[int, str], dict[str, Any]] = {}
    for line in journal.read_text().splitlines() if journal.exists() else ():
        record = json.loads(line)
        last[record["stage"], record["case"]] = record
    return list(last.values())


def format_summary(ends: dict[int, tuple[str, float]], cases: list[dict[str, Any]]) -> list[str]:
    """Return a line per stage, then what went wrong."""
    lines = [f"{'stage':12s} {'seconds':>7s}  done failed lost   ended by"]
    for stage, (end, seconds) in ends.items():
        states = [case["state"] for case in cases if case["stage"] == stage]
        counts = [
            states.count("done"),
            states.count("failed"),
            states.count("begun") + states.count("no time"),
        ]
        lines.append(
            f"{stage} {STAGES[stage][0]:10s} {seconds:7.0f}  {counts[0]:4d} {counts[1]:6d} {counts[2]:4d}   {end}"
        )
    wrong = [case for case in cases if case["state"] != "done"]
    return lines + [
        f"{case['state'].upper()} {case['stage']} {case['case']}: {case['line'][:160]}" for case in wrong[:25]
    ]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", default="", help="numbers, with commas; all if empty")
    parser.add_argument(
        "--out", type=Path, default=Path(os.environ.get("OUT") or ROOT / "benchmarks" / "results")
    )
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=WHOLE_SECONDS, help="for all stages together")
    arguments = parser.parse_args()
    words = arguments.stages.split(",") if arguments.stages else list(map(str, range(len(STAGES))))
    if not all(word in map(str, range(len(STAGES))) for word in words):
        parser.error(
            f"--stages {arguments.stages}: must be numbers from 0 to {len(STAGES) - 1} with commas between"
        )
    arguments.stages, arguments.out = sorted(map(int, words)), arguments.out.resolve()
    return arguments


def main() -> int:
    arguments = parse_arguments()
    if arguments.child is not None:
        return run_child(arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    journal, start, ends = arguments.out / "gpu.jsonl", time.monotonic(), {}
    for path in (journal, arguments.out / "gpu.log"):
        path.unlink(missing_ok=True)
    for stage in arguments.stages:
        began = time.monotonic()
        seconds = limit_seconds(stage, arguments.stages, arguments.seconds - (began - start))
        print(f"-- stage {stage} {STAGES[stage][0]}, at most {seconds:.0f} s", flush=True)
        ends[stage] = (run_stage(stage, seconds, arguments), time.monotonic() - began)
    cases = last_records(journal)
    lines = format_summary(ends, cases)
    print("\n".join(lines), flush=True)
    path = (
        arguments.out
        / f"gpu-{'dry-run' if arguments.dry_run else 'run'}-{datetime.date.today().isoformat()}.json"
    )
    content = {"seconds": time.monotonic() - start, "stages": ends, "summary": lines, "cases": cases}
    path.write_text(json.dumps(content, indent=1) + "\n")
    journal.unlink(missing_ok=True)
    print(f"{time.monotonic() - start:.0f} s; written to {path}", flush=True)
    return (
        1
        if any(case["state"] in ("failed", "begun") for case in cases)
        or any(end != "ended" for end, _ in ends.values())
        else 0
    )


if __name__ == "__main__":
    sys.exit(main())
