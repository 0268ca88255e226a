"""What a router does, as frozen values without torch; the maths is in `hmoe.model.selection` and `hmoe.model.capacity`.

| spec | who chooses | source |
|---|---|---|
| `TopK` | a token its k best experts; with a capacity, rectified, by a sigmoid, in groups, with a bias, with noise | HMoE eq 8 |
| `TopP` | a token its best experts until their probabilities reach p | HMoE eq 9-11; Huang et al. 2024 |
| `ExpertChoice` | an expert its best tokens; not causal | Zhou et al. 2022 |
"""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from typing import Any, ClassVar, Literal

from hmoe.errors import ConfigError
from hmoe.specs.checks import no_effect, one_of, real, switches, whole

_FORBID_EXTRA = {"extra": "forbid"}  # read by pydantic when a recipe names a router
_CAPACITY = (  # keys of TopK that say what a capacity does
    "eval_capacity_factor", "min_capacity", "capacity_by", "priority", "rectify", "when", "local_scale", "ranks",
)  # fmt: skip


@dataclass(frozen=True)
class TopK:
    """Each token goes to its k most probable experts (HMoE eq 8; the paper uses k=2).

    Attributes:
        k: experts per token. With k = 1 and renormalised gates the gate is always 1: the text gives the router no gradient, unless
            straight_through is true or renormalize is false.
        renormalize: gates are divided by their sum over the experts that took the token; False leaves them raw (Switch, OLMoE).
        straight_through: what gates are divided by is a constant to the gradient, so that with k = 1, where the gate is always
            1, the router learns from the text too (Rectify-Router's baselines; `rectify` always does so).
        scores: softmax over all experts, or a sigmoid of each logit (DeepSeek-V3).
        gate_scale: gates are multiplied by this (DeepSeek-V3: 2.5).
        groups, keep_groups: experts lie in `groups` equal groups in their order; a token chooses from the `keep_groups` with
            the largest sum of their two best scores (DeepSeek-V3: 8, 4).
        bias_rate: step of a bias per expert that is added to the scores for choosing, not for the gates, and moves against the
            expert's load once per training step (Wang et al. 2408.15664: 1e-3); 0: no bias.
        bias_by: load counted in tokens, or in compute: tokens x width / mean width.
        capacity_factor: an expert takes at most C tokens, C = ceil(capacity_factor x k x T / E); None: no limit.
        eval_capacity_factor: the same in evaluation mode (Switch: 1.25 and 2.0); None: as in training.
        min_capacity: C is at least this (DeepSpeed: 4).
        capacity_by: C equal for all experts, or proportional to width: ceil(capacity_factor x k x T x h / sum h).
        priority: who comes first where C is reached. First choices before second ones; within a choice by position in the
            batch (GShard), or by the token's largest score (batch-prioritised, Rectify-Router).
        rectify: Rectify-Router. "ir": dropped tokens go to the best expert of their own rank, without a limit. "fr": k + 1
            choices with the capacity of k, so that the last fills what would be padding. "fr+ir": both.
        when: which tokens "ir" serves: those that "all" chosen experts refused, that "any" refused, that "fewer" than k took.
        local_scale: weight of the local expert, for R experts that took the token: k - R (paper) or k + 1 - R (authors' code).
        ranks: number of simulated ranks, experts and tokens in contiguous shares; None: one expert per rank.
        skip: in evaluation mode an expert is left out whose score is below this share of the best one's (dynamic skipping, Lu et
            al. 2024; they take the median on a text, see `hmoe upcycle --skip`); None: none is.
        jitter: in training the router's input is multiplied by uniform(1 - jitter, 1 + jitter) (Switch).
        gumbel: in training choices after the first are drawn: Gumbel noise is added to their logits (DeepSpeed's top-2).

    Raises:
        ConfigError: for a value out of range, or one without effect. What depends on the experts is checked where they are known.
    """

    k: int = 2
    _: KW_ONLY
    renormalize: bool = True
    straight_through: bool = False
    scores: Literal["softmax", "sigmoid"] = "softmax"
    gate_scale: float = 1.0
    groups: int | None = None
    keep_groups: int | None = None
    bias_rate: float = 0.0
    bias_by: Literal["tokens", "compute"] = "tokens"
    capacity_factor: float | None = None
    eval_capacity_factor: float | None = None
    min_capacity: int = 0
    capacity_by: Literal["equal", "width"] = "equal"
    priority: Literal["position", "score"] = "position"
    rectify: Literal["ir", "fr", "fr+ir"] | None = None
    when: Literal["all", "any", "fewer"] = "all"
    local_scale: Literal["k-r", "k+1-r"] = "k-r"
    ranks: int | None = None
    skip: float | None = None
    jitter: float = 0.0
    gumbel: bool = False
    name: Literal["top_k"] = "top_k"
    __pydantic_config__: ClassVar = _FORBID_EXTRA

    def __post_init__(self) -> None:
        switches(self, "renormalize", "straight_through", "gumbel")
        whole(self, k=1, groups=1, keep_groups=1, min_capacity=0, ranks=1)
        real(self, gate_scale=1e6, bias_rate=1, capacity_factor=1e6, eval_capacity_factor=1e6, jitter=1, skip=1)
        one_of(self, scores=("softmax", "sigmoid"), bias_by=("tokens", "compute"), capacity_by=("equal", "width"),
                priority=("position", "score"), rectify=(None, "ir", "fr", "fr+ir"), when=("all", "any", "fewer"),
                local_scale=("k-r", "k+1-r"))  # fmt: skip
        if (self.groups is None) != (self.keep_groups is None) or (self.keep_groups or 0) > (self.groups or 0):
            raise ConfigError(
                f"router.groups = {self.groups}, router.keep_groups = {self.keep_groups}: give both, keep_groups at most groups"
            )
        if self.capacity_factor is None:
            no_effect(self, "without capacity_factor", *_CAPACITY)
        if self.when == "all":
            no_effect(self, "with when = all: nobody else took the token", "local_scale")
        if self.rectify not in ("ir", "fr+ir"):
            no_effect(self, "unless rectify is ir or fr+ir", "when", "local_scale", "ranks")
        if self.rectify:
            no_effect(self, "with rectify, whose gates sum to 1", "renormalize", "straight_through", "gate_scale")
        if not self.renormalize:
            no_effect(self, "on raw gates, which are not divided", "straight_through")
        if not self.bias_rate:
            no_effect(self, "while bias_rate is 0", "bias_by")
        if self.skip == 0:
            raise ConfigError("router.skip = 0 has no effect: no score is below 0; remove it")
        if self.skip is not None and (self.k == 1 or self.capacity_factor is not None):
            no_effect(self, "with k = 1" if self.k == 1 else "with a capacity, which drops by itself", "skip")
        if self.k == 1 and self.rectify not in ("fr", "fr+ir"):
            no_effect(self, "with k = 1, there is no second choice", "gumbel")

    @property
    def title(self) -> str:
        """For people."""
        parts = [f"top-{self.k}"]
        parts += [f"capacity {self.capacity_factor:g}"] if self.capacity_factor is not None else []
        parts += [self.rectify] if self.rectify else []
        parts += ["sigmoid scores"] if self.scores == "sigmoid" else []
        parts += [f"{self.keep_groups} of {self.groups} groups"] if self.groups else []
        parts += ["balanced by a bias"] if self.bias_rate else []
        parts += ["weak ones skipped in evaluation"] if self.skip else []
        return ", ".join(parts)

    def constant_gates(self, num_experts: int) -> bool:
        """Each token's only gate is divided by itself: the text gives the router no gradient, whatever the experts do."""
        straight = self.straight_through or self.rectify is not None
        return self.k == 1 and num_experts > 1 and self.renormalize and not straight

    @property
    def choices(self) -> int:
        """Experts that a token asks for: k, and one more to fill in."""
        return self.k + (self.rectify in ("fr", "fr+ir"))

    @property
    def noisy(self) -> bool:
        """Training draws random numbers."""
        return self.jitter > 0 or self.gumbel

    def capacity(self, training: bool) -> float | None:
        """The factor that holds now."""
        return self.eval_capacity_factor if not training and self.eval_capacity_factor else self.capacity_factor

    def dropless(self) -> "TopK":
        """The same without a capacity."""
        defaults = {field.name: field.default for field in fields(self)}
        return replace(self, capacity_factor=None, **{name: defaults[name] for name in _CAPACITY})  # type: ignore[arg-type]

    def num_experts(self, num_experts: int) -> tuple[int, int, int]:
        """(fewest, expected, most) experts per token, of `num_experts`, in training; expected is before anything is dropped or
        added."""
        k = min(self.k, num_experts)
        if self.capacity_factor is None:
            return k, k, k
        local = self.rectify in ("ir", "fr+ir")
        return int(local), k, min(self.choices + local, num_experts)

    def check(self, num_experts: int) -> None:
        """Raise ConfigError if this router cannot serve `num_experts` experts."""
        if self.choices > num_experts:
            fill = " (rectify fills in with one more)" if self.choices > self.k else ""
            raise ConfigError(f"router.k = {self.k}, must be at most the number of experts, {num_experts}{fill}")
        groups, keep = self.groups or 1, self.keep_groups or 1
        if num_experts % groups:
            raise ConfigError(f"router.groups = {groups}, must divide the number of experts, {num_experts}")
        if num_experts // groups * keep < self.choices:
            raise ConfigError(
                f"router.keep_groups = {keep}: {num_experts // groups * keep} experts, must hold at least k = {self.choices}"
            )
        if self.ranks is not None and self.ranks > num_experts:
            raise ConfigError(f"router.ranks = {self.ranks}, must be at most the number of experts, {num_experts}")


@dataclass(frozen=True)
class TopP:
    """Each token goes to its most probable experts until their sum reaches p (HMoE eq 9-11; the paper uses 0.6).

    The expert that crosses p is included, so there is always one; p = 1 selects all experts.

    Attributes:
        p: sum of probabilities to reach.
        renormalize: gates are divided by their sum over the chosen experts; False leaves them raw (Huang et al. 2024).
        jitter: as in TopK.

    Raises:
        ConfigError: if p is not in (0, 1].
    """

    p: float = 0.6
    _: KW_ONLY
    renormalize: bool = True
    jitter: float = 0.0
    name: Literal["top_p"] = "top_p"
    __pydantic_config__: ClassVar = _FORBID_EXTRA

    def __post_init__(self) -> None:
        if isinstance(self.p, bool) or not isinstance(self.p, int | float) or not 0 < self.p <= 1:
            raise ConfigError(f"router.p = {self.p!r}, must be in (0, 1]")
        switches(self, "renormalize")
        real(self, jitter=1)

    def constant_gates(self, num_experts: int) -> bool:
        """As in TopK: the best of E probabilities is at least 1 / E, so that up to this p no token gets a second expert."""
        return self.renormalize and 1 < num_experts <= 1 / self.p

    @property
    def title(self) -> str:
        """For people."""
        return f"top-p {self.p}"

    @property
    def noisy(self) -> bool:
        """Training draws random numbers."""
        return self.jitter > 0

    def num_experts(self, num_experts: int) -> tuple[int, int, int]:
        """(fewest, expected, most) experts per token; expected is for a uniform router: ceil(p x experts)."""
        return 1, max(1, math.ceil(self.p * num_experts - 1e-9)), num_experts

    def check(self, num_experts: int) -> None:
        """Every top-p router can serve any number of experts."""


@dataclass(frozen=True)
class ExpertChoice:
    """Each expert takes its C most probable tokens of the batch, C = ceil(capacity_factor x T / E) (Zhou et al. 2022).

    A token gets 0 to E experts, with raw probabilities as gates. Not causal: whether a token is taken depends on later ones,
    so a language model trained so reads the future, and cannot generate.

    Attributes:
        capacity_factor: mean number of experts per token where capacity_by is "equal" (paper: 2).
        capacity_by: C equal, or such that every expert computes alike: ceil(capacity_factor x T x mean h / (E x h)).
        jitter: as in TopK.

    Raises:
        ConfigError: for a value out of range.
    """

    capacity_factor: float = 1.0
    _: KW_ONLY
    capacity_by: Literal["equal", "compute"] = "equal"
    jitter: float = 0.0
    name: Literal["expert_choice"] = "expert_choice"
    __pydantic_config__: ClassVar = _FORBID_EXTRA

    def __post_init__(self) -> None:
        real(self, capacity_factor=1e6, jitter=1)
        one_of(self, capacity_by=("equal", "compute"))

    def constant_gates(self, num_experts: int) -> bool:
        """Never: gates are raw."""
        return False

    @property
    def title(self) -> str:
        """For people."""
        return f"expert choice {self.capacity_factor:g}"

    @property
    def noisy(self) -> bool:
        """Training draws random numbers."""
        return self.jitter > 0

    def num_experts(self, num_experts: int) -> tuple[int, float, int]:
        """(fewest, expected, most) experts per token."""
        return 0, min(num_experts, self.capacity_factor), num_experts

    def check(self, num_experts: int) -> None:
        """Raise ConfigError if this router cannot serve `num_experts` experts."""
        if self.capacity_factor > num_experts:
            raise ConfigError(
                f"router.capacity_factor = {self.capacity_factor}, must be at most the number of experts, {num_experts}"
            )


Router = TopK | TopP | ExpertChoice
NAMES = ("top_k", "top_p", "expert_choice")


def of_layer(spec: Router, skip: Sequence[float], place: int) -> Router:
    """The router of the MoE layer with this number among them: with its own share of `TopK.skip`, if there are shares.

    Raises:
        ConfigError: if the router has no use for them.
    """
    if not skip or not skip[place]:
        return spec
    if spec.name != "top_k" or spec.skip is not None:
        raise ConfigError(f"moe.skip: the router is {spec.title}; must be top-k without a skip of its own")
    return replace(spec, skip=skip[place])


def describe_constant_gates(spec: Router, num_experts: int) -> str | None:
    """What to tell of a router whose gates are constants, None of others."""
    if not spec.constant_gates(num_experts):
        return None
    ways = (
        "router.straight_through = true or router.renormalize = false"
        if spec.name == "top_k"
        else (f"router.p above {1 / num_experts:.3g} or router.renormalize = false")
    )
    return (
        f"router {spec.title} of {num_experts}: a token's one gate is renormalised to a constant, so the text gives the router no "
        f"gradient, only balance losses move it; {ways} lets it learn from the text"
    )


def options(spec: Router) -> dict[str, Any]:
    """What is not at its default, by name."""
    return {
        field.name: getattr(spec, field.name) for field in fields(spec) if getattr(spec, field.name) != field.default
    }
