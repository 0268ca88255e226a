"""What a run that begins with another run's weights must have in common with it. No torch."""

import dataclasses

from hmoe.errors import ConfigError
from hmoe.specs.model import ModelSpec

_OF_EXPERTS = ("moe", "ffn")  # fields of a model in which it may differ from its source


def check_upcycled_model(model: ModelSpec, source: ModelSpec, measured_widths: bool = False) -> None:
    """Check that a model can begin with the weights of another: it is that one, or has other experts.

    Args:
        model: that begins.
        source: with whose weights.
        measured_widths: its experts will have widths by the importance of the source's units.

    Raises:
        ConfigError: naming the key in which they differ otherwise; its weights would begin at random.
    """
    if measured_widths:
        _check_measured(model, source)
    if model == source:
        return
    keys = [field.name for field in dataclasses.fields(model) if field.name not in _OF_EXPERTS]
    has_dense_layers = len(model.moe_layers) < model.layers
    for key in [*keys, *(["ffn"] if has_dense_layers else [])]:
        own, other = getattr(model, key), getattr(source, key)
        if own != other:
            raise ConfigError(f"model.{key} = {own}: must be {other}, that of its source")
    if model.moe is None:
        raise ConfigError(
            "model.moe = None: experts cannot become dense again; must have those of its source"
        )


def _check_measured(model: ModelSpec, source: ModelSpec) -> None:
    """Raise ConfigError unless both have as many experts in the same layers, and the model fewer units to share."""
    own, other = (() if each.moe is None else each.moe.expert_widths for each in (model, source))
    if not own or len(own) != len(other) or model.moe_layers != source.moe_layers:
        raise ConfigError(
            f"measured_widths: has {len(own)} experts in layers {list(model.moe_layers)}, its source {len(other)} in "
            f"{list(source.moe_layers)}; must be as many in the same layers as of its source"
        )
    if sum(own) >= sum(other):
        raise ConfigError(
            f"measured_widths: its experts have {sum(own)} hidden units in all, those of its source {sum(other)}; must "
            f"be fewer, since what is measured is which units can go: nearest is {sum(other) - 8} or less, as of its "
            "source"
        )
