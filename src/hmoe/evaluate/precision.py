"""Choose the precision in which a model is evaluated."""

import torch

from hmoe.errors import ConfigError
from hmoe.model.transformer import Transformer

PRECISIONS = ("float32", "bfloat16")


def check_precision(name: str | None) -> None:
    """Raise ConfigError for a precision that does not exist; None is that of the weights."""
    if name is not None and name not in PRECISIONS:
        raise ConfigError(f"precision = {name}: must be {' or '.join(PRECISIONS)}", argument="precision")


class EvaluationPrecision:
    """A precision for a model; a call gives a context in which the model computes in it.

    float32 changes the model's weights to it, once. bfloat16 computes as training does: matrix products in
    bfloat16, the residual stream and the router in the precision of the weights.

    Attributes:
        name: the precision, that of the weights if none was asked for.

    Raises:
        ConfigError: for another name.
    """

    def __init__(self, model: Transformer, name: str | None = None) -> None:
        check_precision(name)
        if name == "float32":
            model.to(torch.float32)
        weight = model.embed.weight
        self.name = name or str(weight.dtype).removeprefix("torch.")
        self._device = weight.device.type
        self._autocast = name == "bfloat16" and weight.dtype != torch.bfloat16

    def __call__(self) -> torch.autocast:
        """Return a context to compute in."""
        return torch.autocast(self._device, torch.bfloat16, enabled=self._autocast)
