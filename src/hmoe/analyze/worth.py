"""What each expert is worth: how much worse a model predicts without it, for its parameters and its computation."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from hmoe.analyze.expert_inputs import Windows, batch_windows
from hmoe.analyze.tally import divide_known
from hmoe.analyze.traced_text import Floats, Ints, Row
from hmoe.errors import ConfigError
from hmoe.model.trace import trace
from hmoe.model.transformer import Transformer
from hmoe.parallel.workers import ONE_WORKER, Workers, share_work
from hmoe.statistics.jackknife import estimate_jackknife_interval
from hmoe.statistics.paired import adjust_holm
from hmoe.statistics.student_t import compute_t_quantile, compute_t_tail

_CONFIDENCE = 0.95
_ROUNDING = 1e-12  # nats per token: intervals that are narrower are of differences that do not vary


def measure_worth(
    model: Transformer,
    windows: Windows,
    report: Callable[[int, int], None] = lambda done, total: None,
    workers: Workers = ONE_WORKER,
) -> dict[str, list[Row]]:
    """Read windows once as they are and once without each expert of each layer.

    An expert that is left out is never chosen (`hmoe.trace`, `without`). Returns the table `worth`, a row for each
    layer and expert, zero-computation experts too:

    - difference: loss without the expert minus the loss with it, in nats per token; low, high, p: see `compare_losses`,
      p after Holm's correction over all experts of all layers;
    - parameter_share, compute_share: of all experts of all layers, in hidden units, and in hidden units x tokens that
      they served;
    - per_parameter_share, per_compute_share: difference / share, None where the share is 0.

    Args:
        model: any model with MoE layers.
        windows: token ids of each, and the document that each token is of.
        report: called with the experts that are done, and all.
        workers: processes that share the experts; all call this with the same arguments.

    Raises:
        ConfigError: for a dense model.
    """
    if not model.config.moe_layers:
        raise ConfigError("the model is dense and has no experts to look at")
    if not windows:
        return {"worth": []}
    widths = _get_widths(model)
    cells = [
        (layer, expert) for layer in range(len(model.config.moe_layers)) for expert in range(len(widths))
    ]
    with_all, pairs = _sum_losses(model, windows, {})
    num_tokens = _count_scored(windows)
    report(0, len(cells))
    done = 0

    def sum_without(cell: tuple[int, int]) -> list[float]:
        nonlocal done
        without, _ = _sum_losses(model, windows, {cell[0]: [cell[1]]})
        done = min(done + workers.size, len(cells))
        report(done, len(cells))
        return [float(difference) for difference in without - with_all]

    differences = np.array(share_work(workers, cells, sum_without)).T
    comparisons = compare_losses(np.ascontiguousarray(differences), num_tokens)
    return {"worth": _list_rows(cells, widths, pairs, comparisons)}


def _list_rows(
    cells: Sequence[tuple[int, int]],
    widths: Sequence[int],
    pairs: Ints,
    comparisons: Sequence[Mapping[str, float | None]],
) -> list[Row]:
    """Return a row for each layer and expert, from the pairs it served and what the model lost without it."""
    units = pairs * np.asarray(widths)
    parameter_shares = np.tile(np.asarray(widths) / (sum(widths) * len(pairs)), len(pairs))
    compute_shares = divide_known(units, units.sum()).reshape(-1)
    rows = []
    for place, (layer, expert) in enumerate(cells):
        row: Row = {"layer": layer, "expert": expert, "width": int(widths[expert]), **comparisons[place]}
        shares = {"parameter": float(parameter_shares[place]), "compute": float(compute_shares[place])}
        for name, share in shares.items():
            row[f"{name}_share"] = share if np.isfinite(share) else None
        for name, share in shares.items():
            is_known = share > 0 and row["difference"] is not None
            row[f"per_{name}_share"] = row["difference"] / share if is_known else None
        rows.append(row)
    return rows


def compare_losses(differences: Floats, num_tokens: Ints) -> list[dict[str, float | None]]:
    """Return mean differences per token with intervals over documents, and p values after Holm's correction.

    Documents differ in length, so the mean is a ratio: the sum of differences over the sum of tokens. Its interval is
    the jackknife's that leaves out one document after another, with Student's t; p is that of the same t. Differences
    that do not vary from document to document have neither.

    Args:
        differences: summed over the tokens of each document (documents, comparisons).
        num_tokens: of each document.
    """
    tables = (differences, num_tokens[:, None])
    estimate = estimate_jackknife_interval(divide_known, tables, _CONFIDENCE)
    groups = int((num_tokens > 0).sum())
    tails: dict[str, float] = {}
    results: list[dict[str, float | None]] = []
    for place, value in enumerate(estimate.value):
        half_width = float(estimate.high[place] - value)
        varies = half_width > _ROUNDING
        low, high = (float(value) - half_width, float(value) + half_width) if varies else (None, None)
        if varies:
            quantile = compute_t_quantile(1 - _CONFIDENCE, groups - 1)
            tails[str(place)] = compute_t_tail(float(value) / half_width * quantile, groups - 1)
        difference = float(value) if np.isfinite(value) else None
        results.append({"difference": difference, "low": low, "high": high, "p": None})
    for name, tail in adjust_holm(tails).items():
        results[int(name)]["p"] = tail
    return results


def _get_widths(model: Transformer) -> tuple[int, ...]:
    assert model.config.moe is not None
    return model.config.moe.routed_widths


def _sum_losses(
    model: Transformer, windows: Windows, without: Mapping[int, Sequence[int]]
) -> tuple[Floats, Ints]:
    """Return losses summed over the tokens of each document, and pairs of each layer and expert."""
    documents = np.unique(np.concatenate([document_T for _, document_T in windows]))
    sums = np.zeros(len(documents))
    pairs = np.zeros((len(model.config.moe_layers), len(_get_widths(model))), np.int64)
    for batch in batch_windows(windows):
        traced = trace(model, torch.from_numpy(np.stack([tokens for tokens, _ in batch])), without=without)
        document_T = np.concatenate([document_T for _, document_T in batch])
        nll_T = traced.nll_T.numpy()
        known_T = ~np.isnan(nll_T)  # the first token of a window has none
        np.add.at(sums, np.searchsorted(documents, document_T[known_T]), nll_T[known_T])
        pairs += traced.num_tokens_ZE.numpy()
    return sums, pairs


def _count_scored(windows: Windows) -> Ints:
    """Return the tokens of each document that have a loss: all but the first of a window."""
    documents = np.unique(np.concatenate([document_T for _, document_T in windows]))
    counts = np.zeros(len(documents), np.int64)
    for _, document_T in windows:
        np.add.at(counts, np.searchsorted(documents, document_T[1:]), 1)
    return counts
