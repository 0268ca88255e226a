"""What routers did with one fixed text while a run was trained: files of `train.inspect_every`. No torch.

    RUN/probe/step-00000100.json: {"format": 1, "step": 100, "split": ..., "tokens": [[...], ...], "blocks": [...],
                                   "widths": [...], "chosen": [...], "units": [...], "nll": [...]}

`tokens` are sequences; the other lists have one entry a token, sequence after sequence. `chosen` has a list for each
MoE layer, which has the experts of each token; `units` are hidden units that a token activated, summed over MoE layers;
`nll` is in nats given the tokens before, null for the first of a sequence.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from hmoe.checkpoint.manifest import read_newest_state
from hmoe.errors import CheckpointError, ConfigError
from hmoe.runs.config_binding import CONFIG, is_run_folder
from hmoe.storage import read_json

PROBE_FORMAT = 1
_FOLDER = "probe"
Probe = dict[str, Any]


def locate_probe(run: Path, step: int) -> Path:
    """Return the file that holds the probe of a step."""
    return run / _FOLDER / f"step-{step:08d}.json"


def list_probe_steps(run: Path, last_step: int | None = None) -> list[int]:
    """Return the steps of which a run folder has a probe, in order, up to a step (None: all)."""
    names = [
        path.name.removeprefix("step-").removesuffix(".json") for path in run.glob(f"{_FOLDER}/step-*.json")
    ]
    steps = sorted(int(name) for name in names if name.isdecimal())
    return [step for step in steps if last_step is None or step <= last_step]


def read_probe(run: Path, step: int) -> Probe:
    """Return the probe of a step.

    Raises:
        CheckpointError: if the file is damaged.
    """
    path = locate_probe(run, step)
    try:
        probe = read_json(path)
        whole = probe["format"] == PROBE_FORMAT and probe["step"] == step and _is_whole(probe)
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise CheckpointError(f"{path}: damaged, or of another version; move it away to go on without it")
    return dict(probe)


def read_probe_history(run: Path) -> dict[str, list[dict[str, Any]]]:
    """Return how much of the routing at the end was there already at each step, up to the newest checkpoint.

    Router saturation (Muennighoff et al. 2024, OLMoE): of the token-expert pairs of the last probe the share that the
    probe of a step has too. Its null is what the two would share if tokens had nothing to do with it: the expected
    overlap of routings that serve as many tokens by each expert, the tokens of one of them exchanged at random.

    Returns:
        saturation: step layer agreement null; layer None is all MoE layers together. Empty without probes, and for a
            dense model.

    Raises:
        ConfigError: if it is no run folder.
        CheckpointError: for a file that is damaged, or of another text than the last one.
    """
    if not is_run_folder(run):
        raise ConfigError(f"{run}: not a run folder, it has no {CONFIG}; `hmoe train RECIPE` makes one")
    state = read_newest_state(run)
    steps = list_probe_steps(run, state["step"] if state else None)
    if not steps:
        return {"saturation": []}
    last = read_probe(run, steps[-1])
    rows = []
    for step in steps:
        probe = read_probe(run, step)
        if any(probe[key] != last[key] for key in ("tokens", "blocks", "widths")):
            raise CheckpointError(
                f"{locate_probe(run, step)}: is of another text or model than that of step {last['step']}; "
                "move it away to go on without it"
            )
        rows += _compare_probes(probe, last)
    return {"saturation": rows}


def _compare_probes(probe: Probe, last: Probe) -> list[dict[str, Any]]:
    """Return a row for each MoE layer, and one for all together."""
    # layer -> pairs in both, pairs expected in both, pairs at the end
    sums: list[tuple[int, float, int]] = []
    for chosen, last_chosen in zip(probe["chosen"], last["chosen"], strict=True):
        shared = sum(len(set(a) & set(b)) for a, b in zip(chosen, last_chosen, strict=True))
        loads, last_loads = (
            Counter(e for experts in table for e in experts) for table in (chosen, last_chosen)
        )
        expected = sum(loads[expert] * load for expert, load in last_loads.items()) / len(last_chosen)
        sums.append((shared, expected, last_loads.total()))
    if not sums:
        return []
    layers: list[tuple[int | None, tuple[float, ...]]] = list(enumerate(sums))
    layers.append((None, tuple(sum(column) for column in zip(*sums, strict=True))))
    return [
        {
            "step": probe["step"],
            "layer": layer,
            "agreement": shared / total if total else None,
            "null": expected / total if total else None,
        }
        for layer, (shared, expected, total) in layers
    ]


def _is_whole(probe: Probe) -> bool:
    """Return whether all lists are there, and as long as they must be."""
    num_tokens = sum(len(tokens) for tokens in probe["tokens"])
    lists = [*probe["chosen"], probe["units"], probe["nll"]]
    num_experts = len(probe["widths"])
    known = all(
        type(expert) is int and 0 <= expert < num_experts
        for table in probe["chosen"]
        for experts in table
        for expert in experts
    )
    return (
        known
        and len(probe["chosen"]) == len(probe["blocks"])
        and {len(each) for each in lists} == {num_tokens}
    )
