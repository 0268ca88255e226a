"""What a run that begins with another run's weights must have in common with it. No torch."""

import dataclasses

from hmoe.errors import ConfigError
from hmoe.specs.model import ModelSpec

_OF_EXPERTS = ("moe", "ffn")  # fields of a model in which it may differ from its source


def check_upcycled_model(model: ModelSpec, source: ModelSpec) -> None:
    """Check that a model can begin with the weights of another: it is that one, or has other experts.

    Raises:
        ConfigError: naming the key in which they differ otherwise; its weights would begin at random.
    """
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
