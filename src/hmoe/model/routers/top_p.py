"""Top-p: the best experts of each token until their probabilities reach p (HMoE eq 9-11).

Its spec is `hmoe.specs.routers.top_p`.
"""

import torch
import torch.nn.functional as F

from hmoe.errors import ConfigError
from hmoe.kernels import Rule
from hmoe.model.routers.base import RouterMethod
from hmoe.model.routing import RouterState
from hmoe.model.waiting import would_wait
from hmoe.specs.routers.top_p import TopP


def choose_top_p(
    probs_TE: torch.Tensor, logits_TE: torch.Tensor, spec: TopP, state: RouterState
) -> torch.Tensor:
    """Choose the largest until their sum reaches p; the inputs may give another p for each token."""
    return choose_until_sum(probs_TE, logits_TE, spec, state.inputs.top_p_T)


def make_top_p_rule(spec: TopP, state: RouterState) -> Rule | None:
    """Tell the kernels of top-p; thresholds of single tokens are computed by the definition."""
    if state.inputs.top_p_T is not None or not state.widths:
        return None
    every = len(state.widths) if spec.p == 1 else 0  # sums of probabilities round to 1 before the last expert
    return Rule(every, spec.p, False, spec.renormalize, 1.0)


def choose_until_sum(
    probs_TE: torch.Tensor, logits_TE: torch.Tensor, spec: TopP, top_p_T: torch.Tensor | None = None
) -> torch.Tensor:
    """Choose the largest until their sum reaches p (HMoE eq 9-10); return boolean (T, E).

    `top_p_T` is another p for each token.
    """
    # Float sums of probabilities round to 1 before the last expert, so p = 1 does not compare.
    if top_p_T is None and spec.p == 1:
        return torch.ones_like(probs_TE, dtype=torch.bool)
    order_TE = torch.argsort(logits_TE, dim=1, descending=True, stable=True)
    sorted_TE = probs_TE.gather(1, order_TE)
    larger = sorted_TE.cumsum(1)[:, :-1]  # sum of the strictly earlier ones, of all but the first
    p_T1 = spec.p if top_p_T is None else top_p_T[:, None]
    # The first is kept without comparing: a tiny p is 0 in float32. The one that crosses p is kept too.
    keep_TE = F.pad(larger < p_T1, (1, 0), value=True)
    if top_p_T is not None:
        keep_TE = keep_TE | (top_p_T == 1)[:, None]
    return torch.zeros_like(keep_TE).scatter(1, order_TE, keep_TE)


def check_thresholds(top_p_T: torch.Tensor, num_tokens: int) -> None:
    """Raise ConfigError unless there is one for each token, from 0 to 1.

    Values are seen on the CPU only, a GPU would have to be waited for.
    """
    if top_p_T.shape != (num_tokens,):
        raise ConfigError(
            f"top_p_T: its shape is {tuple(top_p_T.shape)}, must be ({num_tokens},), a threshold each"
        )
    if would_wait(top_p_T):
        return
    wrong_T = ~((top_p_T >= 0) & (top_p_T <= 1))
    if wrong_T.any():
        first = int(wrong_T.nonzero()[0])
        raise ConfigError(f"top_p_T: {float(top_p_T[first])} of token {first}, must be from 0 to 1")


TOP_P = RouterMethod(choose_top_p, make_rule=make_top_p_rule)
