"""A fixed text whose routing is written down now and then, by which it is seen how experts come to differ."""

import json
import math
from typing import Any

import torch

from hmoe.data.batches import load_first_sequences
from hmoe.model.trace import RoutingTrace, trace
from hmoe.runs.probe_history import PROBE_FORMAT, list_probe_steps, locate_probe
from hmoe.storage import flush_to_disk, write_atomic
from hmoe.train.compiled import run_eagerly
from hmoe.train.session import Session

MOST_TOKENS = 512
_DIGITS = 4  # of a negative log-likelihood


def cut_back_probes(session: Session) -> None:
    """Remove the probes of steps after that at which a run goes on, and what a killed one left unfinished."""
    for step in list_probe_steps(session.path):
        if step > session.counts.step:
            locate_probe(session.path, step).unlink()
    for leftover in locate_probe(session.path, 0).parent.glob(".step-*.json.tmp"):
        leftover.unlink()


def write_probe(session: Session) -> None:
    """Write what the routers do with the probe text after this step, in evaluation mode as validation has it.

    Equal weights write equal bytes. Nothing of the training changes: no random number is drawn. Of several
    processes all compute, and the first one writes.
    """
    config = session.config
    split, tokens_BL = load_first_sequences(
        session.index, config.data.sequence_length, MOST_TOKENS, session.batches.packing
    )
    with (
        run_eagerly(config),
        session.processes.gathering(session.model),
        torch.autocast(session.device, torch.bfloat16, enabled=config.train.precision == "bfloat16"),
    ):
        traced = trace(session.model, torch.from_numpy(tokens_BL))
    if session.processes.rank > 0:
        return
    probe = {
        "format": PROBE_FORMAT,
        "step": session.counts.step,
        "split": split,
        "tokens": tokens_BL.tolist(),
    }
    path = locate_probe(session.path, session.counts.step)
    if not path.parent.is_dir():
        path.parent.mkdir()
        flush_to_disk(session.path)
    content = json.dumps({**probe, **_describe_trace(traced)}, allow_nan=False, separators=(",", ":"))
    write_atomic(path, content.encode() + b"\n")


def _describe_trace(traced: RoutingTrace) -> dict[str, Any]:
    """Return experts, activated hidden units and likelihoods of each token as JSON values."""
    num_tokens = len(traced.tokens_T)
    chosen: list[list[list[int]]] = [[[] for _ in range(num_tokens)] for _ in traced.blocks]
    pairs = zip(
        *(column_N.tolist() for column_N in (traced.layer_N, traced.token_N, traced.expert_N)), strict=True
    )
    for layer, token, expert in pairs:
        chosen[layer][token].append(expert)
    return {
        "blocks": list(traced.blocks),
        "widths": list(traced.widths),
        "chosen": chosen,
        "units": [int(units) for units in traced.width_ZT.sum(0).tolist()],
        "nll": [round(nats, _DIGITS) if math.isfinite(nats) else None for nats in traced.nll_T.tolist()],
    }
