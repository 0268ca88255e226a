"""Plans that change one thing of a recipe with unequal experts: the paper's ablations. No torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hmoe.config.recipes import read_recipe
from hmoe.config.run import RunConfig
from hmoe.errors import ConfigError
from hmoe.specs.model import MoESpec, list_unequal_only
from hmoe.sweep.families import LOAD_BALANCE, PARAMETER_PENALTY, ROUTER_ENTROPY, equalize_budget, switch_off
from hmoe.sweep.grid import list_groups_with_controls, locate_recipe
from hmoe.sweep.plan import SweepPlan, check_plan

# Rate of the bias of the rules, as in aux-free balancing.
BIAS_RATE = 1e-3
# Name of a row -> its overrides.
Variants = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Ablation:
    """One thing that is changed.

    Attributes:
        name: on the command line.
        summary: what is changed, and where the paper does so.
        list_variants: returns the rows of a recipe.
    """

    name: str
    summary: str
    list_variants: Callable[[RunConfig, MoESpec], Variants]


def _vary_losses(config: RunConfig, moe: MoESpec) -> Variants:
    built_in = tuple(
        f"model.moe.{name}=0.0" for name in ("load_balance", "parameter_penalty", "router_entropy")
    )
    none = (*built_in, *switch_off(moe.losses))
    entropy = f"model.moe.router_entropy={moe.router_entropy or ROUTER_ENTROPY!r}"
    penalty = f"model.moe.parameter_penalty={moe.parameter_penalty or PARAMETER_PENALTY!r}"
    balance = f"model.moe.load_balance={moe.load_balance or LOAD_BALANCE!r}"
    variants = {"none": none, "balance": (*none, balance), "penalty": (*none, penalty)}
    if moe.router.threshold is not None:
        variants |= {"entropy": (*none, entropy), "penalty+entropy": (*none, penalty, entropy)}
    return variants


def _vary_strategies(config: RunConfig, moe: MoESpec) -> Variants:
    total, experts, multiple = sum(moe.expert_widths), len(moe.expert_widths), _get_multiple(moe)
    rule = f"total: {total}, experts: {experts}"
    return {
        shape: (
            f"model.moe.widths={{shape: {shape}, {rule}{'' if shape == 'equal' else f', multiple: {multiple}'}}}",
            *(switch_off(list_unequal_only(moe)) if shape == "equal" else ()),
        )
        for shape in ("equal", "arithmetic", "hybrid", "geometric")
        if shape != "hybrid" or experts % 4 == 0
    }


def _vary_ratio(config: RunConfig, moe: MoESpec) -> Variants:
    total, experts, multiple = sum(moe.expert_widths), len(moe.expert_widths), _get_multiple(moe)
    rule = f"shape: arithmetic, total: {total}, experts: {experts}, multiple: {multiple}"
    ratios = {"1": 1.0, "1.5": 1.5, "23/9": 23 / 9, "4": 4.0, "8": 8.0}
    return {
        f"ratio={name}".replace("/", "-"): (
            f"model.moe.widths={{{rule}, ratio: {ratio!r}}}",
            *(switch_off(list_unequal_only(moe)) if ratio == 1 else ()),
        )
        for name, ratio in ratios.items()
    }


def _vary_penalty(config: RunConfig, moe: MoESpec) -> Variants:
    return {
        f"{norm}-{coefficient:g}": (
            f"model.moe.parameter_penalty={coefficient!r}",
            f"model.moe.penalty_norm={norm}",
        )
        for norm in ("mean", "max")
        for coefficient in (0.01, 0.03, 0.1, 0.3)
    }


def _vary_k(config: RunConfig, moe: MoESpec) -> Variants:
    counts = [k for k in (1, 2, 3, 4) if k <= len(moe.expert_widths)]
    return {f"k={k}": (f"model.moe.router={{name: top_k, k: {k}}}",) for k in counts}


def _vary_p(config: RunConfig, moe: MoESpec) -> Variants:
    entropy = f"model.moe.router_entropy={moe.router_entropy or ROUTER_ENTROPY!r}"
    return {
        f"p={p}": (f"model.moe.router={{name: top_p, p: {p}}}", entropy) for p in (0.4, 0.5, 0.6, 0.7, 0.8)
    }


def _vary_experts(config: RunConfig, moe: MoESpec) -> Variants:
    total = sum(moe.expert_widths)
    counts = [count for count in (4, 8, 16, 32) if total // (2 * count) >= 1]
    return {
        f"experts={count}": (f"model.moe.widths={{shape: arithmetic, total: {total}, experts: {count}}}",)
        for count in counts
    }


def _vary_rules(config: RunConfig, moe: MoESpec) -> Variants:
    """Return each training rule beside the recipe as it is; see `docs/guides/routers.md`.

    Some need more than their own key: a bias takes the penalty's place, batch statistics need several micro-batches
    (compare them with `micro-statistics`).
    """
    variants: Variants = {"penalty": ()}
    if moe.router.threshold is None:
        biased = (
            f"model.moe.router={{name: top_k, k: {_get_k(moe)}, bias_rate: {BIAS_RATE}, bias_by: compute}}"
        )
        variants["compute-bias"] = ("model.moe.parameter_penalty=0.0", biased)
    if config.data.batch_sequences % 4 == 0:
        variants["micro-statistics"] = ("data.micro_batches=4",)
        variants["batch-statistics"] = ("data.micro_batches=4", "model.moe.statistics=batch")
    return variants


def _get_k(moe: MoESpec) -> int:
    return round(moe.router.count_experts_per_token(len(moe.expert_widths))[1])


def _get_multiple(moe: MoESpec) -> int:
    return getattr(moe.widths, "multiple", 1)


ABLATIONS = {
    ablation.name: ablation
    for ablation in (
        Ablation("losses", "auxiliary losses (figures 3 and 5)", _vary_losses),
        Ablation("strategies", "how widths are chosen (figure 6)", _vary_strategies),
        Ablation("ratio", "largest / smallest width (figure 10)", _vary_ratio),
        Ablation("penalty", "norm and coefficient of the parameter penalty", _vary_penalty),
        Ablation("k", "experts per token of top-k", _vary_k),
        Ablation("p", "threshold of top-p", _vary_p),
        Ablation("experts", "number of experts of one total width", _vary_experts),
        Ablation("rules", "training rules that might make unequal experts pay", _vary_rules),
    )
}


def build_ablation_plan(
    name: str,
    recipe: str,
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
    baseline: str | None = None,
    controls: bool = False,
) -> SweepPlan:
    """Return a plan of a recipe with one thing changed.

    Args:
        name: of the ablation, see `ABLATIONS`.
        recipe: preset or YAML file with experts.
        seeds: of each row.
        overrides: of the recipe.
        baseline: row that the others are compared with; None: the first.
        controls: add the uniform control of each row whose experts differ in width.

    Raises:
        ConfigError: for another name, or a recipe without experts.
    """
    if name not in ABLATIONS:
        raise ConfigError(f"ablation = {name}: must be among {', '.join(ABLATIONS)}", argument="ablation")
    config = read_recipe(recipe, overrides)[1]
    moe = config.model.moe
    if moe is None:
        raise ConfigError(f"{recipe}: has no experts, nothing of which can be changed; nearest is quickstart")
    groups = [
        {"name": variant, "recipe": locate_recipe(recipe), "overrides": list(changes)}
        for variant, changes in ABLATIONS[name].list_variants(config, moe).items()
    ]
    tree = {"kind": "ablation", "groups": groups, "seeds": list(seeds)}
    tree["overrides"] = [*overrides, *equalize_budget(config)]
    what = f"ablation {name}"
    if controls:
        tree["groups"] = list_groups_with_controls(check_plan(tree, what))
    return check_plan(tree | {"baseline": baseline or groups[0]["name"]}, what)
