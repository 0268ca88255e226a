"""What a person sees of a training run: lines that stay, and one that tells how far it is."""

from pathlib import Path
from typing import Any, Protocol

from hmoe.config.plan import make_plan
from hmoe.config.run import RunConfig


class Display(Protocol):
    """Where the lines go; `hmoe.cli.progress.ProgressBar` is one for terminals."""

    def print_line(self, text: str, style: str = "") -> None:
        """Print a line that stays."""

    def update(self, task: str, done: float, total: float | None, text: str) -> None:
        """Show how far a task is: `done` parts of `total`, with a text."""


class _PlainDisplay:
    """Prints the lines that stay, for who calls the trainer without a command line."""

    def print_line(self, text: str, style: str = "") -> None:
        print(text, flush=True)

    def update(self, task: str, done: float, total: float | None, text: str) -> None:
        """Show nothing."""


class Console:
    """Says what happens in a training run; nothing here is read back by the program."""

    def __init__(self, display: Display | None = None) -> None:
        self._display = display or _PlainDisplay()

    def note(self, text: str) -> None:
        """Print a line."""
        self._display.print_line(text)

    def warn(self, text: str) -> None:
        """Print a line that should be read."""
        self._display.print_line(f"warning: {text}", style="yellow")

    def start(self, config: RunConfig, device: str) -> None:
        """Print what is trained."""
        numbers = make_plan(config)
        total, active = numbers["total_parameters"], numbers["activated_parameters"]
        self.note(
            f"model: {_format_si(total)} parameters, {_format_si(active)} activated under uniform routing; "
            f"{config.train.precision} on {device}; {config.data.batch_tokens} tokens per step"
        )
        self._writes = config.model.causal
        if config.model.moe:
            widths = ", ".join(map(str, config.model.moe.expert_widths))
            self.note(f"experts: widths {widths}; router {config.model.moe.router.title}")
            if config.model.moe.warning:
                self.warn(config.model.moe.warning)

    def data(self, index: Any, batches: Any) -> None:
        """Print which training tokens no sequence holds, and warn where most of the data is held out."""
        if unreached := batches.describe_reach():
            self.note(f"data: {unreached}")
        if unbalanced := index.describe_split():
            self.warn(unbalanced)

    def row(self, row: dict[str, Any], records: Any, progress: float) -> None:
        """Show one step, which brings the run to `progress` of its budget."""
        self._display.update("train", progress, 1.0, _describe_step(row, records.tokens_per_second, progress))
        if "validation_loss" in row:
            bits = row["validation_bits_per_byte"]
            self.note(
                f"step {row['step']}: validation loss {row['validation_loss']:.4f}, {bits:.4f} bits per byte"
            )
            self._print_slots(row.get("slots"))
        if row.get("sample"):
            self.note(f"step {row['step']} writes: {row['sample']!r}")
        for warning in row.get("warnings", []):
            self.warn(warning)

    def end(self, state: Any, folder: Path, signal_name: str) -> None:
        """Print where things stand, and what to do next."""
        why = f"stopped by {signal_name}, the same command continues" if signal_name else "finished"
        self.note(
            f"{why}: step {state.step}, {state.tokens} tokens, {state.flops:.3e} FLOPs; run folder {folder}"
        )
        if not signal_name:
            writes = f'hmoe generate {folder} "She was"; ' if self._writes else ""
            self.note(f"try: {writes}hmoe eval {folder}")

    def _print_slots(self, slots: dict[str, list[int]] | None) -> None:
        """Print what capacities did in this step, a line per MoE layer."""
        for layer, counts in enumerate(zip(*slots.values(), strict=True) if slots else ()):
            parts = ", ".join(f"{count:,} {name}" for name, count in zip(slots or (), counts, strict=True))
            self.note(f"slots of MoE layer {layer}: {parts}")


def _describe_step(row: dict[str, Any], tokens_per_second: float, progress: float) -> str:
    loss = "nan" if row["loss"] is None else f"{row['loss']:.4f}"
    parts = [f"step {row['step']} ({progress:.0%})", f"loss {loss}", f"{tokens_per_second:,.0f} tok/s"]
    if "expert_token_share" in row:
        parts.append(
            f"{row['experts_per_token']:.2f} experts, {row['mean_activated_width']:.0f} hidden units"
        )
    parts.append(f"{_format_si(row['activated_parameters'])} active")
    return " | ".join(parts)


def _format_si(value: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.2f}{unit}"
    return f"{value:.0f}"
