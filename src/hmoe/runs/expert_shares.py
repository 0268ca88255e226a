"""Which experts a run chose when it began and at its end: narrow ones or wide ones, and how many idle. No torch."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmoe.runs.log_rows import read_logs
from hmoe.specs.model import MoESpec

_RECENT_ROWS = 20  # of the log that tell how busy experts are now
_PART = 10  # the first and the last tenth of the logged steps
_IDLE = 0.1  # of the share that it had if all were chosen alike: below that an expert is idle


@dataclass(frozen=True)
class ExpertShares:
    """Shares of a token's expert choices, mean over MoE layers and over a tenth of the logged steps.

    Attributes:
        narrow_begin: of the experts that are narrower than the mean, in the first tenth; None: all are equal.
        narrow_end: the same in the last tenth.
        idle_end: share of the experts, over all layers, that got less than a tenth of a uniform share in the last
            tenth.
    """

    narrow_begin: float | None
    narrow_end: float | None
    idle_end: float


def list_narrow_experts(moe: MoESpec) -> list[int]:
    """Return the experts that are narrower than the mean; none where all are equal."""
    widths = moe.routed_widths
    mean = statistics.fmean(widths)
    return [expert for expert, width in enumerate(widths) if width < mean]


def measure_expert_shares(moe: MoESpec, rows: Sequence[dict[str, Any]]) -> ExpertShares | None:
    """Measure the shares from rows of metrics.jsonl (HMoE figures 3, 5, 6 and 11); None where no row tells them."""
    tables = [row["expert_token_share"] for row in rows if row.get("expert_token_share")]
    if not tables:
        return None
    count = max(1, len(tables) // _PART)
    begin_ZE, end_ZE = _average(tables[:count]), _average(tables[-count:])
    narrow, num_experts = list_narrow_experts(moe), len(moe.routed_widths)
    shares = [
        statistics.fmean(sum(layer[expert] for expert in narrow) for layer in table_ZE) if narrow else None
        for table_ZE in (begin_ZE, end_ZE)
    ]
    idle = [share < _IDLE / num_experts for layer in end_ZE for share in layer]
    return ExpertShares(shares[0], shares[1], sum(idle) / len(idle))


def read_frequencies(run: Path, step: int | None = None) -> list[list[float]] | None:
    """Return how many of a token's choices fell to each expert, by MoE layer, in the last logged steps up to one.

    None: nothing was logged.
    """
    # Runs of earlier versions did not log how many experts a token has.
    known = ("expert_token_share", "experts_per_token_by_layer")
    rows = [row for _, row in read_logs(run, step)[0] if all(map(row.get, known))][-_RECENT_ROWS:]
    tables = [
        [
            [share * per_token for share in layer]
            for layer, per_token in zip(
                row["expert_token_share"], row["experts_per_token_by_layer"], strict=True
            )
        ]
        for row in rows
    ]
    return _average(tables) if tables else None


def _average(tables: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    """Return the mean over steps of shares by layer and expert."""
    return [
        [statistics.fmean(shares) for shares in zip(*layers, strict=True)]
        for layers in zip(*tables, strict=True)
    ]
