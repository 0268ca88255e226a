"""What a mixture has besides its routed experts: what of it a new model can take over, and what the new model lacks."""

from typing import TYPE_CHECKING

from hmoe.errors import ConfigError
from hmoe.model.transformer import Transformer

if TYPE_CHECKING:
    from hmoe.specs.model import ModelSpec

_SIZES = ("dim", "embedding", "hidden", "layer_embedding")  # of HyperExperts


def check_parts(source: "ModelSpec", config: "ModelSpec") -> None:
    """Raise ConfigError for parts beside the experts that can neither be taken over whole, nor left out, nor begin anew."""
    before, after = source.moe, config.moe
    assert after is not None
    if after.zero is not None and (before is None or before.zero is None or source.moe_layers != config.moe_layers):
        raise ConfigError("moe.zero: a new router would send tokens to experts that give nothing; leave it out")
    if before is None:
        return
    for name, has, wanted in (
        ("zero", _counts(before.zero), _counts(after.zero)),
        ("shared", before.shared or None, after.shared or None),
        ("hyper", _sizes(before.hyper), _sizes(after.hyper)),
    ):
        if has is not None and wanted is not None and has != wanted:
            raise ConfigError(f"moe.{name} = {wanted}: the source has {has}; must be that, or be left out")
    if before.hyper is not None and after.hyper is not None and source.moe_layers != config.moe_layers:
        raise ConfigError(
            "moe.hyper: the source's HyperExperts know its layers; must have the same, or leave hyper out"
        )


def _counts(zero: object) -> dict[str, int] | None:
    return None if zero is None else {name: getattr(zero, name) for name in ("null", "copy", "constant")}


def _sizes(hyper: object) -> dict[str, int] | None:
    return None if hyper is None else {name: getattr(hyper, name) for name in _SIZES}


def list_lost_parts(parameters: dict[str, int], source: "ModelSpec", config: "ModelSpec") -> list[str]:
    """Parts of the source that the new model lacks, each with what it counted.

    Args:
        parameters: of the source: numbers by name.
        source: config of the source.
        config: config of the new model.
    """
    before, after = source.moe, config.moe
    if before is None or after is None:
        return []
    balanced, balances = (moe.router.bias_update is not None for moe in (before, after))
    lost = []
    for title, has, stays, parts in (
        ("HyperExperts", before.hyper, after.hyper, (".hyper.", "hyper_network.")),
        (f"shared experts of width {before.shared}", before.shared, after.shared, (".shared.",)),
        (
            f"{before.zero.count if before.zero else 0} zero-computation experts per layer",
            before.zero,
            after.zero,
            (".zero.",),
        ),
        ("the bias that balances the router", balanced, balances, (".bias_E",)),
    ):
        if has and not stays:
            number = sum(size for name, size in parameters.items() if any(part in f".{name}" for part in parts))
            lost.append(f"{title} ({number:,} parameters)")
    return lost


def lost_parts(source: Transformer, config: "ModelSpec") -> list[str]:
    """Parts of the source that a model of this config lacks, each with its parameters; their effect is in the errors."""
    parameters = {name: parameter.numel() for name, parameter in source.named_parameters()}
    return list_lost_parts(parameters, source.config, config)
