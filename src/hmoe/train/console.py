"""What a person sees of a training run: lines that stay, and one that tells how far it is."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from hmoe.config.plan import make_plan
from hmoe.config.processes import describe_processes
from hmoe.config.run import RunConfig
from hmoe.data.batches import Batches, describe_validation
from hmoe.data.shards import Index
from hmoe.runs.summary import RunSummary
from hmoe.runs.validations import BestValidation, read_validation
from hmoe.train.advice import DataReads, describe_short_documents
from hmoe.train.sparkline import draw_shares
from hmoe.train.summary import describe_run, describe_units
from hmoe.units import format_count


class Display(Protocol):
    """Where the lines go; `hmoe.cli.progress.ProgressBar` is one for terminals."""

    @property
    def encoding(self) -> str:
        """Encoding of what is shown."""

    def print_line(self, text: str, style: str = "") -> None:
        """Print a line that stays."""

    def update(
        self, task: str, done: float, total: float | None, text: str | Sequence[str], below: str = ""
    ) -> None:
        """Show how far a task is: `done` parts of `total`, with texts, the most important first."""


class _PlainDisplay:
    """Prints the lines that stay, for who calls the trainer without a command line."""

    encoding = "utf-8"

    def print_line(self, text: str, style: str = "") -> None:
        print(text, flush=True)

    def update(
        self, task: str, done: float, total: float | None, text: str | Sequence[str], below: str = ""
    ) -> None:
        """Show nothing."""


class SilentDisplay:
    """Shows nothing: for processes whose others speak, and for measurements."""

    encoding = "utf-8"

    def print_line(self, text: str, style: str = "") -> None:
        """Show nothing."""

    def update(
        self, task: str, done: float, total: float | None, text: str | Sequence[str], below: str = ""
    ) -> None:
        """Show nothing."""


class Console:
    """Says what happens in a training run; nothing here is read back by the program.

    Args:
        display: where it is said; None: standard output.
        list_steps: returns the commands that can follow a run, given whether its budget is used up.
    """

    def __init__(
        self,
        display: Display | None = None,
        list_steps: Callable[[RunSummary, bool], Sequence[str]] = lambda run, is_finished: (),
    ) -> None:
        self._display = display or _PlainDisplay()
        self._list_steps = list_steps
        self._validations = BestValidation()

    def note(self, text: str) -> None:
        """Print a line."""
        self._display.print_line(text)

    def warn(self, text: str) -> None:
        """Print a line that should be read."""
        self._display.print_line(f"warning: {text}", style="yellow")

    def start(self, config: RunConfig, device: str, is_new: bool, num_processes: int = 1) -> None:
        """Print what is trained; what a run is warned of when it begins is not said again when it goes on."""
        self._config = config
        numbers = make_plan(config)
        total, active = numbers["total_parameters"], numbers["activated_parameters"]
        self.note(
            f"model: {format_count(total)} parameters, {format_count(active)} activated under uniform routing"
        )
        self.note(
            f"training: {config.train.precision} on {device}, {config.data.batch_tokens:,} tokens per step"
        )
        if sharing := describe_processes(config.parallel, num_processes):
            self.note(sharing)
        if config.model.moe:
            widths = ", ".join(map(str, config.model.moe.expert_widths))
            self.note(f"experts: widths {widths}; router {config.model.moe.router.title}")
            if config.model.moe.warning and is_new:
                self.warn(config.model.moe.warning)

    def data(self, index: Index, batches: Batches, tokens: int, rows: Iterable[dict[str, Any]]) -> None:
        """Print what the data means for the run, and warn of what would spoil it.

        Args:
            index: of the data.
            batches: of the run.
            tokens: that the run was trained on already.
            rows: of its metrics.jsonl up to there.
        """
        self._validations, self._reads = BestValidation(rows), DataReads(batches, tokens)
        train, length = self._config.train, self._config.data.sequence_length
        self._held_out = describe_validation(index, length, train.eval_sequences, batches.packing)
        if unreached := batches.describe_reach():
            self.note(f"data: {unreached}")
        if self._held_out:
            self.note(f"validation: {self._held_out} of {length:,} tokens, always the same ones")
        if tokens == 0:
            warnings = (index.describe_split(), describe_short_documents(index, length))
            self._warn_all([*warnings, self._reads.check_budget(train)])

    def row(self, row: dict[str, Any], records: Any, progress: float) -> None:
        """Show one step, which brings the run to `progress` of its budget."""
        rising = self._validations.update(row)
        parts = self._describe_step(row, records.tokens_per_second)
        self._display.update("train", progress, 1.0, parts, self._draw_experts(row))
        validation = read_validation(row)
        if validation is not None:
            values = f"loss {validation.loss:.4f}, {validation.bits_per_byte:.4f} bits per byte"
            self.note(f"step {row['step']}: validation on {self._held_out}: {values}")
            self._print_slots(row.get("slots"))
        if row.get("sample"):
            self.note(f"step {row['step']} writes: {row['sample']!r}")
        self._warn_all([*row.get("warnings", []), rising, self._reads.update(row["tokens"])])

    def end(self, run: RunSummary, reason: str, is_finished: bool = True) -> None:
        """Print where a run stands and why it ended, and what can be done next."""
        steps = self._list_steps(run, is_finished)
        for line in (
            *describe_run(run, reason),
            *(["next:"] if steps else []),
            *(f"  {step}" for step in steps),
        ):
            self.note(line)

    def _warn_all(self, texts: Iterable[str]) -> None:
        for text in texts:
            if text:
                self.warn(text)

    def _describe_step(self, row: dict[str, Any], tokens_per_second: float) -> list[str]:
        """Return what is known of a step, the most important first."""
        loss, newest = row["loss"], self._validations.newest
        parts = [
            "loss nan" if loss is None else f"loss {loss:.4f}",
            f"{newest.bits_per_byte:.4f} bits/byte" if newest else "",
            describe_units(self._config, row["mean_activated_width"]),
            f"{tokens_per_second:,.0f} tokens/s",
            f"epoch {self._reads.count_epochs(row['tokens']):.2f}",
            f"step {row['step']}",
        ]
        parts += [f"{row['experts_per_token']:.2f} experts per token"] if "experts_per_token" in row else []
        return [part for part in parts if part]

    def _draw_experts(self, row: dict[str, Any]) -> str:
        """Return the experts' shares of the tokens as bars; "" for a dense model."""
        moe = self._config.model.moe
        if moe is None or not row.get("expert_token_share"):
            return ""
        widths = moe.routed_widths
        bars = draw_shares(row["expert_token_share"], widths, self._display.encoding)
        span = f"{min(widths):,} to {max(widths):,}" if min(widths) < max(widths) else f"{max(widths):,}"
        return f"experts of {span} units: {bars}"

    def _print_slots(self, slots: dict[str, list[int]] | None) -> None:
        """Print what capacities did in this step, a line per MoE layer."""
        for layer, counts in enumerate(zip(*slots.values(), strict=True) if slots else ()):
            parts = ", ".join(f"{count:,} {name}" for name, count in zip(slots or (), counts, strict=True))
            self.note(f"slots of MoE layer {layer}: {parts}")
