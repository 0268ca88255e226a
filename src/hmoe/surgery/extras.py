"""Shared, zero-computation and HyperExperts: which of them a new model can take over, and which it lacks."""

from typing import TYPE_CHECKING

from hmoe.errors import ConfigError
from hmoe.model.transformer import Transformer

if TYPE_CHECKING:
    from hmoe.specs.model import ModelSpec

_HYPER_SIZES = ("dim", "embedding", "hidden", "layer_embedding")


def check_extras(source: "ModelSpec", config: "ModelSpec") -> None:
    """Raise ConfigError for extras that can neither be taken over whole, nor be left out, nor begin anew.

    Args:
        source: config of the trained model.
        config: config of the new model.
    """
    before, after = source.moe, config.moe
    assert after is not None
    if after.zero is not None and (
        before is None or before.zero is None or source.moe_layers != config.moe_layers
    ):
        raise ConfigError(
            "moe.zero: a new router would send tokens to experts that give nothing; leave it out"
        )
    if before is None:
        return
    for name, present, wanted in (
        ("zero", _zero_counts(before.zero), _zero_counts(after.zero)),
        ("shared", before.shared or None, after.shared or None),
        ("hyper", _hyper_sizes(before.hyper), _hyper_sizes(after.hyper)),
    ):
        if present is not None and wanted is not None and present != wanted:
            raise ConfigError(
                f"moe.{name} = {wanted}: the source has {present}; must be that, or be left out"
            )
    if before.hyper is not None and after.hyper is not None and source.moe_layers != config.moe_layers:
        # The hypernetwork has an embedding per layer, learned for the layer that it was trained in.
        raise ConfigError(
            "moe.hyper: the source's HyperExperts know its layers; must have the same, or leave hyper out"
        )


def _zero_counts(zero: object) -> dict[str, int] | None:
    return None if zero is None else {name: getattr(zero, name) for name in ("null", "copy", "constant")}


def _hyper_sizes(hyper: object) -> dict[str, int] | None:
    return None if hyper is None else {name: getattr(hyper, name) for name in _HYPER_SIZES}


def list_lost_extras(source: Transformer, config: "ModelSpec") -> list[str]:
    """Return the parts of the source that a model of this config lacks, with their numbers of parameters."""
    before, after = source.config.moe, config.moe
    if before is None or after is None:
        return []
    num_zero = before.zero.count if before.zero else 0
    was_balanced, is_balanced = (moe.router.bias_update is not None for moe in (before, after))
    parameters = {name: parameter.numel() for name, parameter in source.named_parameters()}
    lost = []
    for title, present, stays, marks in (
        ("HyperExperts", before.hyper, after.hyper, (".hyper.", "hyper_network.")),
        (f"shared experts of width {before.shared}", before.shared, after.shared, (".shared.",)),
        (f"{num_zero} zero-computation experts per layer", before.zero, after.zero, (".zero.",)),
        ("the bias that balances the router", was_balanced, is_balanced, (".bias_E",)),
    ):
        if present and not stays:
            count = sum(
                size for name, size in parameters.items() if any(mark in f".{name}" for mark in marks)
            )
            lost.append(f"{title} ({count:,} parameters)")
    return lost
