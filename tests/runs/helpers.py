"""Logs of a run, as the trainer writes and resumes them."""

import json
from pathlib import Path

from hmoe.train.records import Records


def write_logs(folder: Path, steps: int = 6, log_every: int = 1) -> Path:
    folder.mkdir()
    records = Records(folder, 0, log_every, print)
    for step in range(1, steps + 1):
        records.tick(10)
        if step % log_every == 0:
            records.write({"step": step, "loss": 2.5 / step})
        if step % 2 == 0:
            records.flush(step)
    records.close()
    return folder


def resume(folder: Path, step: int = 6, log_every: int = 1) -> list[str]:
    told: list[str] = []
    Records(folder, step, log_every, told.append).close()
    return told


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def unseal(folder: Path) -> None:
    """Make of timing.jsonl what earlier versions wrote."""
    lines = [json.loads(line) for line in (folder / "timing.jsonl").read_text().splitlines()]
    rows = [{key: row[key] for key in ("step", "seconds", "tokens_per_second")} for row in lines]
    (folder / "timing.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
