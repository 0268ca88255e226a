"""What a person sees of a training run: a live line on a terminal, plain lines elsewhere."""

import atexit
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console as Rich
from rich.progress import BarColumn, Progress, TextColumn

from hmoe.config.plan import plan
from hmoe.config.run import RunConfig

_PLAIN_SECONDS = 10.0  # between plain progress lines


class Console:
    """Prints to stdout; nothing here is read back by the program."""

    def __init__(self) -> None:
        self._rich = Rich(highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._next_plain = 0.0
        self._began = (0.0, 0.0)

    def note(self, text: str) -> None:
        """A line of its own."""
        self._rich.print(text, markup=False)

    def warn(self, text: str) -> None:
        """A line that should be read."""
        self._rich.print(f"warning: {text}", markup=False, style="yellow")

    def start(self, config: RunConfig, device: str) -> None:
        """Say what is trained; begin the live line."""
        numbers = plan(config)
        total, active = numbers["total_parameters"], numbers["activated_parameters"]
        self.note(
            f"model: {_si(total)} parameters, {_si(active)} activated under uniform routing; {config.train.precision} on {device}; "
            f"{config.data.batch_tokens} tokens per step"
        )
        self._writes = config.model.causal
        if config.model.moe:
            self.note(
                f"experts: widths {', '.join(map(str, config.model.moe.expert_widths))}; router {config.model.moe.router.title}"
            )
            if config.model.moe.warning:
                self.warn(config.model.moe.warning)
        self._began = (time.perf_counter(), 0.0)
        if self._rich.is_terminal:
            self._bar = Progress(BarColumn(24), TextColumn("{task.fields[line]}"), console=self._rich, transient=True)
            self._bar.start()
            self._bar.add_task("train", total=1.0, line="")

    def data(self, index: Any, batches: Any) -> None:
        """Say which training tokens no sequence holds, and warn where most of the data is held out."""
        if unreached := batches.describe_reach():
            self.note(f"data: {unreached}")
        if unbalanced := index.describe_split():
            self.warn(unbalanced)

    def row(self, row: dict[str, Any], records: Any, progress: float) -> None:
        """Show one step."""
        if not self._began[1]:
            self._began = (time.perf_counter() - 1e-9, max(progress, 1e-12))
        line = self._line(row, records, progress)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=progress, line=line)
        elif time.perf_counter() >= self._next_plain or progress >= 1:
            self._next_plain = time.perf_counter() + _PLAIN_SECONDS
            self.note(line)
        if "validation_loss" in row:
            bits = row["validation_bits_per_byte"]
            self.note(f"step {row['step']}: validation loss {row['validation_loss']:.4f}, {bits:.4f} bits per byte")
            self._slots(row.get("slots"))
        if row.get("sample"):
            self.note(f"step {row['step']} writes: {row['sample']!r}")
        for warning in row.get("warnings", []):
            self.warn(warning)

    def end(self, state: Any, folder: Path, signal_name: str) -> None:
        """Close the live line; say where things stand."""
        self._close()
        why = f"stopped by {signal_name}, the same command continues" if signal_name else "finished"
        self.note(f"{why}: step {state.step}, {state.tokens} tokens, {state.flops:.3e} FLOPs; run folder {folder}")
        if not signal_name:
            writes = f'hmoe generate {folder} "She was"; ' if self._writes else ""
            self.note(f"try: {writes}hmoe eval {folder}")

    def __enter__(self) -> "Console":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _slots(self, slots: dict[str, list[int]] | None) -> None:
        """What capacities did in this step, a line per MoE layer."""
        for layer, counts in enumerate(zip(*slots.values(), strict=True) if slots else ()):
            said = ", ".join(f"{count:,} {name}" for name, count in zip(slots or (), counts, strict=True))
            self.note(f"slots of MoE layer {layer}: {said}")

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _line(self, row: dict[str, Any], records: Any, progress: float) -> str:
        loss = "nan" if row["loss"] is None else f"{row['loss']:.4f}"
        parts = [f"step {row['step']} ({progress:.0%})", f"loss {loss}", f"{records.tokens_per_second:,.0f} tok/s"]
        if "expert_token_share" in row:
            parts.append(f"{row['experts_per_token']:.2f} experts, {row['mean_activated_width']:.0f} hidden units")
        parts.append(f"{_si(row['activated_parameters'])} active")
        start, first = self._began
        if first < progress < 1:
            left = (time.perf_counter() - start) * (1 - progress) / (progress - first)
            parts.append(f"ETA {_clock(left)}")
        return " | ".join(parts)


def _si(number: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.2f}{unit}"
    return f"{number:.0f}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"


def data_line() -> Callable[[Any], None]:
    """Shows data preparation."""
    show = _line()

    def report(p: Any) -> None:
        counts = (
            f" | {p.documents:,} documents | {p.text_bytes / 1e6:,.1f} MB | {p.tokens:,} tokens"
            if p.tokens
            else " | reading"
        )
        filled = 20 * p.file // max(p.files, 1)
        show(f"[{'#' * filled}{'.' * (20 - filled)}] file {p.file}/{p.files}{counts}")

    return report


def eval_line() -> Callable[[int, int], None]:
    """Shows an evaluation."""
    show = _line()
    return lambda documents, tokens: show(f"{documents:,} documents | {tokens:,} tokens")


def _line() -> Callable[[str], None]:
    """One line on stderr, rewritten on a terminal, now and then a new one elsewhere."""
    terminal = sys.stderr.isatty()
    last = time.perf_counter()

    def show(text: str) -> None:
        nonlocal last
        if terminal:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        elif time.perf_counter() - last > _PLAIN_SECONDS:
            last = time.perf_counter()
            print(text, file=sys.stderr, flush=True)

    if terminal:
        atexit.register(lambda: print(file=sys.stderr))
    return show
