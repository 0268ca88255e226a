"""A plan small enough for tests, and rows as its runs would write them."""

from pathlib import Path
from typing import Any

from hmoe.sweep.plan import SweepPlan, check_plan
from hmoe.sweep.rows import FINISHED, SweepRow
from tests.conftest import TINY

SMALL = [*TINY, "model.moe.widths.total=64", "model.moe.widths.experts=4", "model.moe.widths.multiple=1"]
QUIET = ["train.eval_every=0", "train.sample_every=0"]
SHORT = ["train.steps=4", *QUIET]
UNEQUAL = {"name": "unequal", "recipe": "tiny", "overrides": [*SMALL, *SHORT]}
OPEN = {**UNEQUAL, "overrides": [*SMALL, *QUIET]}  # for a plan with budgets, which sets them itself
CONTROL = {"name": "control", "control_of": "unequal"}


def make_plan(**changes: Any) -> SweepPlan:
    """Return a plan of an unequal group and its control."""
    return check_plan({"groups": [UNEQUAL, CONTROL], "seeds": [0, 1], **changes}, "plan")


def make_row(run: str, loss: float = 5.0, **changes: Any) -> SweepRow:
    """Return the row of a run that is finished."""
    group, _, seed = run.rpartition("-")
    values: dict[str, Any] = {
        "run": run, "group": group, "family": group, "size": "", "seed": int(seed), "recipe": "0" * 12,
        "status": FINISHED, "step": 4, "tokens": 512, "flops": 10**9, "validation_loss": loss,
        "validation_bits_per_byte": loss / 0.6931471805599453, "validation_tokens": 128,
        "mean_activated_width": 31.25, "experts_per_token": 2.0, "activated_parameters": 1e5,
        "total_parameters": 2 * 10**5, "expert_flops_share": 0.1 + 0.2, "epochs": 0.5, "data": "corpus",
        "packing": "within shards", "seconds": 1.25, "machine": 'a "machine", 2 x 1 threads', "commit": "abc",
    }  # fmt: skip
    return SweepRow(**values | changes)


def read_table(path: Path) -> str:
    """Return a table without its clock columns."""
    import csv

    from hmoe.sweep.rows import CLOCKS

    rows = list(csv.DictReader(path.open()))
    return repr([{name: value for name, value in row.items() if name not in CLOCKS} for row in rows])
