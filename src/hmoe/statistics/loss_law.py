"""The loss of a family of models as a law of size and tokens, and what follows from it in closed form.

L(N, D) = E + A N^-alpha + B D^-beta (Hoffmann et al. 2022, approach 3). N is the size that FLOPs pay for, FLOPs per
token / 6, so that C = 6 N D holds exactly also for models that activate more experts for one token than for another.
"""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hmoe.errors import ConfigError

Values = npt.NDArray[np.float64]
FLOPS_PER_TOKEN_AND_SIZE = 6
_MOST_LOG = 300.0  # of a best size: beyond it a law says nothing


@dataclass(frozen=True)
class LossPoint:
    """A loss that was measured on the way of a run.

    Attributes:
        family: of models that differ in size alone, such as "unequal".
        size: name of the size, the same in all families for models that are compared pair by pair.
        seed: of the run; runs of the same size and seed read the same data in the same order in every family.
        budget: FLOPs that were aimed at.
        flops: FLOPs that were spent.
        tokens: that were read.
        loss: in nats per token.
        run: name of the run, without meaning but that points with the same one are of the same run.
        activated_parameters: for display; the law uses FLOPs.
    """

    family: str
    size: str
    seed: int
    budget: float
    flops: float
    tokens: float
    loss: float
    run: str
    activated_parameters: float | None = None

    def __post_init__(self) -> None:
        for name in ("budget", "flops", "tokens", "loss"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(
                    f"{name} = {value} of run {self.run} (family {self.family}, size {self.size}, seed {self.seed}): "
                    "must be a number above 0"
                )

    @property
    def flops_per_token(self) -> float:
        """Mean over the training so far."""
        return self.flops / self.tokens

    @property
    def model_size(self) -> float:
        """N, so that C = 6 N D."""
        return self.flops_per_token / FLOPS_PER_TOKEN_AND_SIZE


@dataclass(frozen=True)
class LossLaw:
    """L(N, D) = E + A N^-alpha + B D^-beta.

    Attributes:
        E: loss that no size and no number of tokens gets below, in nats.
        A: of the part that a larger model makes smaller.
        B: of the part that more tokens make smaller.
        alpha: exponent of size.
        beta: exponent of tokens.
    """

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    @property
    def coefficients(self) -> Values:
        """E, A, B, alpha, beta."""
        return np.array(astuple(self), np.float64)

    @property
    def has_frontier(self) -> bool:
        """Whether a budget has a best size: only if both size and tokens matter."""
        return min(self.A, self.B, self.alpha, self.beta) > 0

    def predict(self, model_size: Any, tokens: Any) -> Values:
        """Return the loss in nats; arguments broadcast."""
        return predict_loss(self.coefficients, model_size, tokens)

    def optimal_size(self, flops: float) -> tuple[float, float] | None:
        """Return the N and D with the least loss for these FLOPs; None if the law has no frontier."""
        if not self.has_frontier:
            return None
        size = float(compute_optimal_size(self.coefficients, flops))
        return size, flops / FLOPS_PER_TOKEN_AND_SIZE / size

    def frontier_loss(self, flops: float) -> float | None:
        """Return the least loss for these FLOPs; None if the law has no frontier."""
        return float(compute_frontier_loss(self.coefficients, flops)) if self.has_frontier else None

    def flops_for_loss(self, loss: float) -> float | None:
        """Return the FLOPs with which the frontier has this loss; None if it never has."""
        if not self.has_frontier or loss <= self.E:
            return None
        return float(compute_flops_for_loss(self.coefficients, loss))

    def flops_for_loss_at_size(self, loss: float, model_size: float) -> float | None:
        """Return the FLOPs with which models of one size have this loss; None if they never have."""
        flops = float(compute_flops_for_loss_at_size(self.coefficients, loss, model_size))
        return flops if math.isfinite(flops) else None


def predict_loss(coefficients: Values, model_size: Any, tokens: Any) -> Values:
    """Return E + A N^-alpha + B D^-beta.

    Args:
        coefficients: (..., 5): E, A, B, alpha, beta.
        model_size: N, which broadcasts with (...).
        tokens: D, the same.
    """
    constant, of_size, of_tokens, alpha, beta = np.moveaxis(coefficients, -1, 0)
    size, count = np.asarray(model_size, np.float64), np.asarray(tokens, np.float64)
    loss: Values = constant + of_size * size**-alpha + of_tokens * count**-beta
    return loss


def compute_optimal_size(coefficients: Values, flops: Any) -> Values:
    """Return the N that has the least loss where 6 N D is given; NaN where a law has no frontier or it lies far out.

    With M = C / 6: d/dN (A N^-alpha + B (N / M)^beta) = 0, so N^(alpha + beta) = alpha A / (beta B) M^beta.
    """
    _, of_size, of_tokens, alpha, beta = np.moveaxis(coefficients, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        balance = np.log(alpha * of_size) - np.log(beta * of_tokens)
        log_size = (balance + beta * np.log(np.asarray(flops) / FLOPS_PER_TOKEN_AND_SIZE)) / (alpha + beta)
        size: Values = np.exp(np.where(np.abs(log_size) < _MOST_LOG, log_size, np.nan))
    return size


def compute_frontier_loss(coefficients: Values, flops: Any) -> Values:
    """Return the least loss where 6 N D is given; NaN where a law has no frontier."""
    size = compute_optimal_size(coefficients, flops)
    return predict_loss(coefficients, size, np.asarray(flops) / FLOPS_PER_TOKEN_AND_SIZE / size)


def compute_flops_for_loss(coefficients: Values, loss: Any) -> Values:
    """Return the FLOPs with which the frontier has a loss: infinite where it never has, NaN without a frontier.

    At the optimum alpha A N^-alpha = beta B D^-beta, so L - E = A N^-alpha (1 + alpha / beta), which gives N, and the
    same for tokens D: C = 6 N D.
    """
    constant, of_size, of_tokens, alpha, beta = np.moveaxis(coefficients, -1, 0)
    excess = np.asarray(loss) - constant
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        log_size = np.log(of_size * (1 + alpha / beta) / excess) / alpha
        log_tokens = np.log(of_tokens * (1 + beta / alpha) / excess) / beta
        flops = FLOPS_PER_TOKEN_AND_SIZE * np.exp(log_size + log_tokens)
    has_frontier = (of_size > 0) & (of_tokens > 0) & np.isfinite(excess)
    reached: Values = np.where(has_frontier, np.where(excess > 0, flops, np.inf), np.nan)
    return reached


def compute_flops_for_loss_at_size(coefficients: Values, loss: Any, model_size: Any) -> Values:
    """Return the FLOPs with which models of one size have a loss: infinite where they never have."""
    constant, of_size, of_tokens, alpha, beta = np.moveaxis(coefficients, -1, 0)
    excess = np.asarray(loss) - constant - of_size * np.asarray(model_size, np.float64) ** -alpha
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        tokens = np.exp((np.log(of_tokens) - np.log(excess)) / beta)
    is_reached = (excess > 0) & (of_tokens > 0)
    flops: Values = np.where(is_reached, FLOPS_PER_TOKEN_AND_SIZE * model_size * tokens, np.inf)
    return np.where(np.isnan(excess), np.nan, flops)


def collect_columns(points: Sequence[LossPoint]) -> tuple[Values, Values, Values]:
    """Return sizes N, tokens D and losses of points as arrays."""
    rows = [(point.model_size, point.tokens, point.loss) for point in points]
    sizes, tokens, losses = np.array(rows, np.float64).reshape(-1, 3).T
    return sizes, tokens, losses
