"""The families that a recipe with unequal experts is compared with, and its sizes, as overrides. No torch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hmoe.config.counts import estimate_flops_per_token
from hmoe.config.run import RunConfig
from hmoe.errors import ConfigError
from hmoe.specs.losses import LOSSES
from hmoe.specs.model import MoESpec, list_unequal_only
from hmoe.specs.widths import WidthRule
from hmoe.sweep.plan import set_budget

# The paper's coefficients: of equal experts, of unequal ones, and of top-p routing.
LOAD_BALANCE, PARAMETER_PENALTY, ROUTER_ENTROPY = 1e-2, 0.1, 3e-2
REFERENCE = "equal-topk"  # the family that leverage is measured against


@dataclass(frozen=True)
class Family:
    """A kind of model in a comparison at equal FLOPs.

    Attributes:
        name: of the family.
        overrides: that make it of the recipe; none for a control.
        control_of: family of whose finished runs it is the uniform control, or None.
    """

    name: str
    overrides: tuple[str, ...] = ()
    control_of: str | None = None


def list_families(config: RunConfig, names: Sequence[str] | None = None) -> list[Family]:
    """List the families of a recipe: dense, equal and unequal experts by top-k and top-p, and controls.

    All have the recipe's total width but for the dense one, whose layer is as wide as what top-k activates under
    uniform routing, and the controls. Losses are the paper's for each kind of experts; a coefficient that the recipe
    itself has for unequal experts stays.

    Args:
        config: a recipe with unequal experts.
        names: of the families wanted; None: all.

    Raises:
        ConfigError: if the recipe's experts are equal or dense, or a name is unknown.
    """
    moe = config.model.moe
    if moe is None or len(set(moe.expert_widths)) == 1:
        raise ConfigError("families come from a recipe with unequal experts; nearest is quickstart")
    total, experts = sum(moe.expert_widths), len(moe.expert_widths)
    counted, summed = _set_routers(moe)
    equal = (
        f"model.moe.widths={{shape: equal, total: {total}, experts: {experts}}}",
        *_drop_width_losses(moe),
    )
    balance = (f"model.moe.load_balance={moe.load_balance or LOAD_BALANCE!r}",)
    # The recipe's own losses stay, whatever they are: only where it has none for width it gets the paper's.
    has_penalty = moe.parameter_penalty or list_unequal_only(moe)
    penalty = () if has_penalty else (f"model.moe.parameter_penalty={PARAMETER_PENALTY!r}",)
    entropy = (f"model.moe.router_entropy={moe.router_entropy or ROUTER_ENTROPY!r}",)
    no_entropy = () if moe.router.threshold is None else ("model.moe.router_entropy=0.0",)
    families = [
        Family("dense", ("model.moe=null", f"model.ffn={round(_count_experts(moe) * total / experts)}")),
        Family("equal-topk", (*equal, *counted, *balance, *no_entropy)),
        Family("equal-topp", (*equal, *summed, *balance, *entropy)),
        Family("unequal-topk", (*counted, *penalty, *no_entropy)),
        Family("control-topk", control_of="unequal-topk"),
        Family("unequal-topp", (*summed, *penalty, *entropy)),
        Family("control-topp", control_of="unequal-topp"),
    ]
    return families if names is None else _select(families, names)


def list_coefficients(moe: MoESpec) -> dict[str, float]:
    """Return the coefficient of each built-in loss that is on, by the name of the loss."""
    own = {name: getattr(moe, name) for name, loss in LOSSES.items() if loss.built_in}
    return {name: value for name, value in own.items() if value}


def _select(families: Sequence[Family], names: Sequence[str]) -> list[Family]:
    known = {family.name: family for family in families}
    for name in names:
        if name not in known:
            raise ConfigError(f"families = {name}: must be among {', '.join(known)}", argument="families")
        source = known[name].control_of
        if source is not None and source not in names:
            raise ConfigError(
                f"families = {name}: is derived from {source}, which is not chosen", argument="families"
            )
    return [family for family in families if family.name in names]


def _set_routers(moe: MoESpec) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return overrides for a router of a fixed number of experts, and for one of a sum of probabilities.

    The recipe's own is one of the two and stays as it is; the other is the paper's.
    """
    if moe.router.threshold is None:
        return (), ("model.moe.router={name: top_p, p: 0.6}",)
    return ("model.moe.router={name: top_k, k: 2}",), ()


def _count_experts(moe: MoESpec) -> float:
    """Return the experts per token of the families that take a fixed number."""
    return (
        2.0
        if moe.router.threshold is not None
        else moe.router.count_experts_per_token(len(moe.expert_widths))[1]
    )


def _drop_width_losses(moe: MoESpec) -> tuple[str, ...]:
    """Return overrides that take from equal experts the losses that are about width."""
    names = {"parameter_penalty": 0.0, "penalty_norm": "mean"}
    changed = {name: value for name, value in names.items() if getattr(moe, name) != value}
    return (
        *(f"model.moe.{name}={value}" for name, value in changed.items()),
        *switch_off(list_unequal_only(moe)),
    )


def switch_off(losses: Iterable[str]) -> tuple[str, ...]:
    """Return the overrides that leave a recipe without losses of one's own; mappings are merged, so by coefficients."""
    off = dict.fromkeys(losses, 0.0)
    return (f"model.moe.losses={off}",) if off else ()


def equalize_budget(config: RunConfig) -> tuple[str, ...]:
    """Return overrides by which all variants of a recipe end at its FLOPs, under uniform routing where it tells steps.

    Raises:
        ConfigError: if it is told in seconds alone.
    """
    train, per_token = config.train, estimate_flops_per_token(config.model, config.data.sequence_length)
    if train.flops is not None:
        return set_budget(train.flops)
    tokens = min(
        (t for t in ((train.steps or 0) * config.data.batch_tokens, train.tokens) if t), default=None
    )
    if tokens is None:
        raise ConfigError("train.flops: missing; recipes are compared at equal FLOPs, not seconds")
    return set_budget(float(f"{tokens * per_token:.2e}"))


def scale_recipe(config: RunConfig, factor: float) -> tuple[str, ...]:
    """Return overrides that make a recipe's model narrower and shallower, or wider and deeper.

    Heads, and with them the model width, layers and expert widths are multiplied by the factor and rounded; a head and
    the vocabulary stay as they are.

    Raises:
        ConfigError: for a factor that is not positive, or expert widths that are a list and no rule.
    """
    model, moe = config.model, config.model.moe
    if not 0 < factor <= 1000:
        raise ConfigError(f"sizes = {factor}: must be above 0 and at most 1000", argument="sizes")
    heads = max(1, round(model.heads * factor))
    changes = {
        "dim": heads * model.dim // model.heads,
        "heads": heads,
        "layers": max(1, round(model.layers * factor)),
    }
    if model.kv_heads not in (None, model.heads):
        raise ConfigError(f"model.kv_heads = {model.kv_heads}: sizes need as many as heads, {model.heads}")
    if moe is None:
        raise ConfigError("sizes are of a recipe with experts; nearest is quickstart")
    if not isinstance(moe.widths, WidthRule):
        raise ConfigError("model.moe.widths: sizes need a rule {shape, total, experts}, not a list")
    unit = moe.widths.multiple * moe.widths.experts
    total = max(1, round(moe.widths.total * changes["dim"] / model.dim / unit)) * unit
    keys = (*(f"model.{name}={value}" for name, value in changes.items()), f"model.moe.widths.total={total}")
    return keys if model.kv_heads is None else (*keys, f"model.kv_heads={heads}")
