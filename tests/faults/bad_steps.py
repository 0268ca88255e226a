"""Steps that are not finite: NaN, infinities and overflow planted where a step computes; they must change nothing."""

import contextlib
import io
import itertools
import json
import math
import random
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from hmoe.cli.main import run_command_line
from hmoe.train import loop
from tests.faults.campaign import Case, FaultTest, check
from tests.faults.step_faults import NO_FAULT, Fault, begin_fault, plant_hooks
from tests.train.helpers import command, rows, run

STEPS = 10
PLACES = ("loss", "gradient", "router", "expert", "embedding")
VALUES = (math.nan, math.inf, -math.inf, 1e30, 1e4)
TIMES = {"once": 1, "three in a row": 3, "for ever": STEPS}
COMBINATIONS = list(itertools.product(PLACES, VALUES, TIMES))
KINDS: tuple[tuple[str, ...], ...] = (
    (),
    ("model.moe.router={name: top_p, p: 0.6}", "model.moe.router_entropy=0.03"),
    ("model.moe.router={name: expert_choice}",),
    ("model.moe.router={name: top_k, k: 2, bias_rate: 0.01, scores: sigmoid}",),
    ("model.moe.router={name: top_k, k: 2, capacity_factor: 1.0, rectify: fr+ir}",),
    ("model.moe.router={name: top_k, k: 2, jitter: 0.1, gumbel: true}",),
    ("model.moe.zero={null: 1, copy: 1, constant: 1}", "model.moe.shared=8"),
    ("model.moe.hyper={dim: 4, embedding: 8, hidden: 8}",),
    ("model.moe.statistics=batch", "model.moe.load_balance=0.01"),
    ("model.moe.router_z=0.001", "optim.clip=null"),
    ("train.precision=bfloat16",),
    ("train.precision=float64",),
    ("train.activation_checkpointing=true",),
    ("parallel.exact=true",),
    ("parallel.offload=disk",),
)


def train(folder: Path, fault: Fault, words: list[str]) -> tuple[int, str]:
    """Run the command line in this process; return its exit code and what it says on stderr."""
    begin_fault(fault)
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        code = run_command_line(command(folder, *words)[3:])
    check("Traceback" not in errors.getvalue(), f"a traceback: {errors.getvalue()[-200:]!r}")
    return code, errors.getvalue()


def read_end(folder: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return the tensors' files and the state of the newest checkpoint, which must be finite."""
    newest = max((folder / "checkpoints").glob("step-????????"))
    for file in newest.glob("*.safetensors"):
        for name, value in load_file(file).items():
            check(value.isfinite().all(), f"{newest.name}/{file.name}: {name} is not finite")
    tree = json.loads((newest / "state.json").read_text())
    # Counted from the experts that the bad step's own routing chose.
    del tree["counts"]["flops"]
    return {file.name: file.read_bytes() for file in sorted(newest.glob("*.safetensors"))}, tree


def read_losses(folder: Path, without: Collection[int] = ()) -> list[dict[str, Any]]:
    """Return the rows of the log, without what depends on where a run was cut or on a bad step's own routing."""
    kept = [row for row in rows(folder) if row["step"] - 1 not in without]
    return [{k: v for k, v in row.items() if k != "flops" and not k.startswith("validation")} for row in kept]


def repeat_fault(fault: Fault, skip: Collection[int] = ()) -> Fault:
    """Return the same fault for another run, which may skip steps; what was not skipped is spoilt there too."""
    return Fault(fault.place, fault.value, fault.steps, fault.parts, fault.chance, skip)


def draw_fault(number: int, draw: random.Random) -> tuple[Fault, list[str]]:
    """Return what is planted, and the overrides of the run."""
    place, value, times = COMBINATIONS[number % len(COMBINATIONS)]
    first = draw.randrange(6)
    parts = draw.choice([(0,), (1,), (0, 1)])
    fault = Fault(place, value, range(first, first + TIMES[times]), parts, draw.randrange(10**6))
    every = draw.choice([1, 2, 3, 4, 100])
    words = [
        f"train.steps={STEPS}",
        f"train.save_every={every}",
        "train.eval_every=0",
        f"seed={draw.randrange(99)}",
    ]
    return fault, [*words, *draw.choice(KINDS)]


def run_bad_steps(case: Case) -> int:
    draw = case.draw()
    fault, words = draw_fault(case.number, draw)
    told = f"{fault.place} {fault.value} in {fault.steps}, parts {fault.parts}, {words}"
    plant_hooks()
    try:
        code, errors = train(case.folder / "a", fault, words)
        check(fault.planted > 0, "the fault was not planted")
        skipped = [number for number, applied in fault.applied.items() if not applied]
        check(set(skipped) <= set(fault.steps), f"steps {skipped} were skipped, spoilt were {fault.steps}")
        if not math.isfinite(fault.value):
            spoilt = [number for number in fault.applied if number in fault.steps]
            check(skipped == spoilt, f"spoilt were {spoilt}, skipped {skipped}")
        counted = [row["skipped"] for row in rows(case.folder / "a")]
        check(
            counted == [sum(n <= step for n in skipped) for step in range(len(counted))], f"counted {counted}"
        )
        streak = max((sum(1 for _ in group) for bad, group in
                      itertools.groupby(fault.applied.values()) if not bad), default=0)  # fmt: skip
        check(code == (5 if streak >= loop.MAX_BAD_STEPS else 0), f"exit code {code}: {errors[-200:]}")
        if code == 0:
            check_finished(case.folder, fault, words, skipped, draw)
        else:
            check_ended(case.folder, fault, words, skipped, errors)
    except AssertionError as error:
        raise AssertionError(f"{error}; {told}") from None
    return 1


def check_finished(
    folder: Path, fault: Fault, words: list[str], skipped: list[int], draw: random.Random
) -> None:
    """Compare a run that came to its end with one that skips the bad steps, and with one of the same faults in two."""
    reference = repeat_fault(fault, skip=skipped)
    code, errors = train(folder / "skips", reference, words)
    check(code == 0, f"the run that skips ends with {code}: {errors[-200:]}")
    check(
        read_end(folder / "a") == read_end(folder / "skips"),
        "the end differs from that of a run that skips the steps",
    )
    same = read_losses(folder / "a", skipped) == read_losses(folder / "skips", skipped)
    check(same, "good steps differ from those of a run that skips the bad ones")
    cut = draw.randrange(1, STEPS)
    for steps in (cut, STEPS):
        again = repeat_fault(fault)
        code, errors = train(folder / "again", again, [*words, f"train.steps={steps}"])
        check(code == 0, f"the run in two parts ends with {code}: {errors[-200:]}")
    check(
        read_end(folder / "a") == read_end(folder / "again"),
        f"the same faults, cut at step {cut}: other bits",
    )
    check(
        read_losses(folder / "a") == read_losses(folder / "again"),
        f"the same faults, cut at {cut}: another log",
    )


def check_ended(folder: Path, fault: Fault, words: list[str], skipped: list[int], errors: str) -> None:
    """Check a run that five bad steps ended: the same again, what is kept, and that it goes on."""
    last = max(fault.applied)
    check(
        last == skipped[0] + loop.MAX_BAD_STEPS - 1,
        f"ended after step {last + 1}, bad since {skipped[0] + 1}",
    )
    lines = [line for line in errors.splitlines() if "error:" in line]
    check(len(lines) == 1 and f"step {last + 1}: loss or gradients" in lines[0], f"says {errors[-300:]!r}")
    again = repeat_fault(fault)
    check(train(folder / "again", again, words)[0] == 5, "the same faults again do not end the run")
    check(
        (folder / "a/metrics.jsonl").read_bytes() == (folder / "again/metrics.jsonl").read_bytes(),
        "another log",
    )
    kept = [sorted(p.name for p in (folder / name).glob("checkpoints/step-*")) for name in ("a", "again")]
    check(kept[0] == kept[1], f"other checkpoints: {kept}")
    step = 0
    if kept[0]:
        ends = [read_end(folder / name) for name in ("a", "again")]
        check(ends[0] == ends[1], "the same faults leave another checkpoint")
        step = ends[0][1]["step"]
    code, errors = train(folder / "a", NO_FAULT, words)
    check(code == 0, f"does not go on from step {step}: {code} {errors[-200:]}")
    before = [number for number in fault.steps if number < step]
    reference = replace(repeat_fault(fault, skip=[n for n in skipped if n < step]), steps=before)
    check(train(folder / "skips", reference, words)[0] == 0, "the run that skips does not end")
    check(read_end(folder / "a") == read_end(folder / "skips"), f"went on from step {step} to another end")


def prepare_corpus(base: Path) -> int:
    """Train once, so that the embedded corpus lies in the cache."""
    run(base / "run", "train.steps=1")
    return len(COMBINATIONS) * 2


TESTS = (
    FaultTest(
        "R10",
        "NaN, infinities, 1e30 or a spike in the loss, a gradient, router logits, an expert's output or an embedding; "
        "once, three in a row or for ever",
        "a bad step changes no bit, the run is one that skips it, five end it with exit code 5 and a good checkpoint",
        "faults",
        run_bad_steps,
        prepare=prepare_corpus,
    ),
)
