"""What every stage is given, and how its cases run: each alone, and recorded at once."""

import json
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Outcome = tuple[str, Any]  # a line to print, and all there is to keep
Case = Callable[[], Outcome]
LOST = 75  # exit code: this process cannot use the device any more; another goes on with the next case
FATAL = ("CUDA error", "illegal memory access", "unspecified launch failure", "device-side assert")


class WrongResultError(AssertionError):
    """Raised by a case whose result is wrong; `data` is kept as that of a case that is right."""

    def __init__(self, line: str, data: Any) -> None:
        super().__init__(line)
        self.data = data


@dataclass(frozen=True)
class Setting:
    """Where and how long a stage runs; `dry`: on a CPU, tiny, in Triton's interpreter."""

    stage: int
    dry: bool
    seconds: float
    out: Path
    began: float

    @property
    def device(self) -> str:
        """The device as PyTorch names it."""
        return "cpu" if self.dry else "cuda"

    @property
    def left(self) -> float:
        """Seconds until the stage is ended from outside."""
        return self.seconds - (time.monotonic() - self.began)

    @property
    def journal(self) -> Path:
        """Every case's record, a line of JSON each, as they end."""
        return self.out / "gpu.jsonl"


def read_records(journal: Path) -> list[dict[str, Any]]:
    """Return the records of all cases so far."""
    return [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []


def run_cases(setting: Setting, cases: Mapping[str, Case]) -> int:
    """Run the cases that are not recorded yet; return the exit code of the stage's process."""
    ended = {record["case"] for record in read_records(setting.journal) if record["stage"] == setting.stage}
    for name, case in cases.items():
        if name in ended:
            continue
        if setting.left < 3:
            _record(setting, name, "no time", "", None)
            continue
        _record(setting, name, "begun", "", None)
        start = time.monotonic()
        try:
            line, data = case()
        except Exception as error:
            _record(setting, name, "failed", *_failure(error))
            if any(words in str(error) for words in FATAL):
                return LOST
        else:
            _record(setting, name, "done", f"{line}  [{time.monotonic() - start:.1f} s]", data)
    return 0


def _failure(error: Exception) -> tuple[str, Any]:
    """Return a line with type, place and message, and the traceback: nobody can ask the machine again."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        frame for frame in frames if "/hmoe/" in frame.filename or "/benchmarks/" in frame.filename
    ] or frames
    place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
    message = " ".join(str(error).split())
    return f"{type(error).__name__} at {place}: {message[:300]}", {
        "traceback": traceback.format_exc()[-8000:],
        "found": getattr(error, "data", None),
    }


def _record(setting: Setting, case: str, state: str, line: str, data: Any) -> None:
    content = {"stage": setting.stage, "case": case, "state": state, "line": line, "data": data}
    with setting.journal.open("a") as file:
        file.write(json.dumps(content, default=str) + "\n")
    if state != "begun":
        print(f"{setting.stage} {case}: {'' if state == 'done' else state.upper() + ' '}{line}", flush=True)
