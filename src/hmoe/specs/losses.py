"""Auxiliary losses of a MoE layer by name: what recipes, logs and exported folders know of them.

Their functions are in `hmoe.model.losses`; `hmoe.register_loss` adds one from outside this package.
"""

import keyword
from dataclasses import dataclass

from hmoe.errors import ConfigError


@dataclass(frozen=True)
class LossSpec:
    """One auxiliary loss.

    Attributes:
        name: key of its coefficient under `model.moe`, and of its values in metrics.jsonl.
        summary: what it is, for documents.
        option: key under `model.moe` of a variant of it; None: it has none.
        hf_default: coefficient where a Hugging Face config.json does not say.
        built_in: its coefficient is a field of `MoESpec`; else it stands in `MoESpec.losses`.
        unequal_only: it is constant where all experts are equally wide.
    """

    name: str
    summary: str
    option: str | None = None
    hf_default: float = 0.0
    built_in: bool = True
    unequal_only: bool = False

    @property
    def hf_key(self) -> str:
        """Key of its coefficient in a Hugging Face config.json."""
        return f"{self.name}_coef"


# Further keys under `model.moe` that change how losses train a router, not what the model computes.
RULES = ("statistics",)
_TAKEN = {  # other columns of metrics.jsonl and other keys under `model.moe`
    "loss", "loss_total", "step", "tokens", "flops", "lr", "grad_norm", "seconds", "slots", "sample", "applied",
    "skipped", "warnings", "validation_loss", "validation_bits_per_byte", "experts_per_token", "activated_parameters",
    "mean_activated_width", "expert_token_share", "expert_compute_share", "experts_per_token_by_layer", "penalty_norm",
    "entropy_scale", "widths", "router", "shared", "zero", "skip", "hyper", "dense_layers", "losses", *RULES,
}  # fmt: skip
LOSSES: dict[str, LossSpec] = {
    loss.name: loss
    for loss in (
        LossSpec("load_balance", "HMoE eq 3; the paper's equal experts: 1e-2"),
        LossSpec("parameter_penalty", "HMoE eq 4; the paper's unequal experts: 0.1", "penalty_norm", 0.1),
        LossSpec("router_entropy", "HMoE eq 5; the paper's top-p: 3e-2", "entropy_scale"),
        LossSpec("router_z", "mean squared logsumexp of router logits"),
    )
}


def list_loss_keys() -> tuple[str, ...]:
    """Return every key under `model.moe` that is about an auxiliary loss."""
    keys = [key for loss in LOSSES.values() if loss.built_in for key in (loss.name, loss.option) if key]
    return (*keys, "losses", *RULES)


def add_loss(name: str, summary: str, unequal_only: bool = False, again: bool = False) -> None:
    """Make a loss known by its name; `hmoe.register_loss` does so with its function.

    `again` is for the same loss a second time, as where a cell of a notebook is run anew.

    Raises:
        ConfigError: for a name that is taken, or no name that a recipe can hold.
    """
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        raise ConfigError(f"register_loss: name = {name!r}, must be letters, digits and '_', such as my_loss")
    if (name in LOSSES and (LOSSES[name].built_in or not again)) or name in _TAKEN:
        raise ConfigError(
            f"register_loss: name = {name!r} is taken; a loss must not replace another column of the logs"
        )
    LOSSES[name] = LossSpec(name, summary, built_in=False, unequal_only=unequal_only)
