"""What the MoE layers of a model read on a sample of tokens, and what each expert makes of it."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hmoe.analyze.traced_text import Ints
from hmoe.model.trace import trace
from hmoe.model.transformer import Transformer

Windows = Sequence[tuple[Ints, Ints]]  # token ids of each, and the document that each token is of
PASS_TOKENS = 4096  # read in one pass, at least one window


@dataclass(frozen=True)
class LayerInputs:
    """What an MoE layer read.

    Attributes:
        x_TD: inputs, on the CPU.
        chosen_TE: which experts served which token.
    """

    x_TD: torch.Tensor
    chosen_TE: torch.Tensor


def capture_expert_inputs(
    model: Transformer,
    windows: Windows,
    most_tokens: int = 4096,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[LayerInputs]:
    """Read windows and return the inputs of every MoE layer.

    Whole windows are read, so that the inputs are those of a text. The first token of a window, which has no context,
    is left out, unless windows have no others. Of more tokens than `most_tokens`, as many are kept, evenly spread.

    Args:
        model: with MoE layers.
        windows: token ids, and the documents that they are of.
        most_tokens: kept.
        report: called with the windows that were read, and all.
    """
    kept = _spread_positions(windows, most_tokens)
    num_layers = len(model.config.moe_layers)
    inputs: list[list[torch.Tensor]] = [[] for _ in range(num_layers)]
    chosen: list[list[torch.Tensor]] = [[] for _ in range(num_layers)]
    start, done = 0, 0
    for batch in batch_windows(windows):
        tokens_BL = torch.from_numpy(np.stack([tokens for tokens, _ in batch]))
        places = kept[(kept >= start) & (kept < start + tokens_BL.numel())] - start
        with _catch_inputs(model, places) as caught:
            traced = trace(model, tokens_BL)
        chosen_ZTE = traced.chosen_ZTE
        for layer in range(num_layers):
            inputs[layer].append(caught[layer])
            chosen[layer].append(chosen_ZTE[layer, places])
        start, done = start + tokens_BL.numel(), done + len(batch)
        report(done, len(windows))
    return [LayerInputs(torch.cat(x), torch.cat(c)) for x, c in zip(inputs, chosen, strict=True)]


def batch_windows(windows: Windows) -> Iterator[Windows]:
    """Yield windows that are read in one pass: neighbours of the same length."""
    batch: list[tuple[Ints, Ints]] = []
    for window in windows:
        length = len(window[0])
        if batch and (len(batch[0][0]) != length or (len(batch) + 1) * length > PASS_TOKENS):
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


@torch.no_grad()
def run_expert(weights: Sequence[torch.Tensor], x_TD: torch.Tensor) -> torch.Tensor:
    """Return the outputs of an expert (T, D), given w_gate (h, D), w_up (h, D), w_down (D, h), whoever was chosen."""
    w_gate, w_up, w_down = weights
    return (torch.nn.functional.silu(x_TD @ w_gate.T) * (x_TD @ w_up.T)) @ w_down.T


def _spread_positions(windows: Windows, most_tokens: int) -> Ints:
    """Return which tokens are kept, counted over all windows."""
    is_first = np.concatenate([np.arange(len(tokens)) == 0 for tokens, _ in windows])
    places = np.flatnonzero(~is_first) if not is_first.all() else np.arange(len(is_first))
    if len(places) <= most_tokens:
        return places
    return places[np.arange(most_tokens) * len(places) // most_tokens]


@contextlib.contextmanager
def _catch_inputs(model: Transformer, places: Ints) -> Iterator[dict[int, torch.Tensor]]:
    """Collect the inputs of the MoE layers at some places of a pass, by layer."""
    caught: dict[int, torch.Tensor] = {}

    def catch(layer: int, _module: Any, arguments: tuple[Any, ...]) -> None:
        x_TD = arguments[0].detach().flatten(0, -2)
        caught[layer] = x_TD[torch.from_numpy(places).to(x_TD.device)].cpu()

    hooks = []
    for layer, place in enumerate(model.config.moe_layers):
        block: Any = model.blocks[place]
        hooks.append(block.ffn.register_forward_pre_hook(functools.partial(catch, layer)))
    try:
        yield caught
    finally:
        for hook in hooks:
            hook.remove()
