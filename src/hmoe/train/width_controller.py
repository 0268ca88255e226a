"""Holds the mean activated width at a target by moving the coefficient of a penalty on width."""

import math

from hmoe.specs.model import MoESpec

STATE = "width_controller"  # key of its coefficient in a checkpoint
GAIN = 0.3  # of 0.1, 0.2 and 0.3 the one that settled fastest without swinging with top-k
MOST_FACTOR = 1000.0  # the coefficient stays within the recipe's / this and the recipe's x this


class WidthController:
    """An integral controller: log c += gain x (width - target) / target after every applied step.

    It moves the coefficient of width_cost where the recipe has that, which alone always makes tokens go to
    narrower experts. Without it it moves parameter_penalty's, whose pull ends where every expert does as much
    work, T_i proportional to 1 / h_i: a width beyond that, seen from what the text wants, it cannot reach.

    Its state is the coefficient, one exact float of the checkpoint.

    Attributes:
        name: of the loss whose coefficient it moves.
        coefficient: of that loss in the next step.
    """

    def __init__(self, moe: MoESpec, coefficient: float | None = None, gain: float = GAIN) -> None:
        """Begin with the recipe's coefficient, or go on with one that a checkpoint held."""
        assert moe.target_width is not None
        self.target, self.gain = moe.target_width, gain
        self.name = "width_cost" if moe.width_cost else "parameter_penalty"
        start = moe.get_coefficient(self.name)
        self.range = start / MOST_FACTOR, start * MOST_FACTOR
        self.coefficient = start if coefficient is None else coefficient

    @property
    def moved(self) -> dict[str, float]:
        """Return the coefficient by the name of its loss."""
        return {self.name: self.coefficient}

    def update(self, width: float) -> None:
        """Take in the mean activated width of a step whose update was applied."""
        least, most = self.range
        moved = self.coefficient * math.exp(self.gain * (width - self.target) / self.target)
        self.coefficient = min(max(moved, least), most)
