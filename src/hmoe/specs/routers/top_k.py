"""Top-k: a token takes its k best experts (HMoE eq 8).

Also with a capacity, rectified, by a sigmoid, in groups, with a bias, with noise.

The mathematics is `hmoe.model.routers.top_k`.
"""

from dataclasses import KW_ONLY, dataclass, replace
from typing import Annotated, Literal

from hmoe.errors import ConfigError
from hmoe.specs.fields import Real, Whole, get_default
from hmoe.specs.plain import list_options
from hmoe.specs.routers.base import BiasUpdate, Noise, RouterSpec

_OF_CAPACITY = (  # fields that say what a capacity does
    "eval_capacity_factor", "min_capacity", "capacity_by", "priority", "rectify", "when", "local_scale", "ranks",
)  # fmt: skip
# These change nothing of a trained model.
_OF_TRAINING = ("straight_through", "jitter", "gumbel", "bias_rate", "bias_by")


@dataclass(frozen=True)
class TopK(RouterSpec):
    """Each token goes to its k most probable experts (HMoE eq 8; the paper uses k=2).

    Attributes:
        k: experts per token. With k = 1 and renormalised gates the gate is always 1: the text gives the
            router no gradient, unless straight_through is true or renormalize is false.
        renormalize: gates are divided by their sum over the experts that took the token; False leaves them
            raw (Switch, OLMoE).
        straight_through: what gates are divided by is a constant to the gradient, so that with k = 1, where
            the gate is always 1, the router learns from the text too (Rectify-Router's baselines; `rectify`
            always does so).
        scores: softmax over all experts, or a sigmoid of each logit (DeepSeek-V3).
        gate_scale: gates are multiplied by this (DeepSeek-V3: 2.5).
        groups, keep_groups: experts lie in `groups` equal groups in their order; a token chooses from the
            `keep_groups` with the largest sum of their two best scores (DeepSeek-V3: 8, 4).
        bias_rate: step of a bias per expert that is added to the scores for choosing, not for the gates, and
            moves against the expert's load once per training step (Wang et al. 2408.15664: 1e-3); 0: no bias.
        bias_by: load counted in tokens, or in compute: tokens x width / mean width.
        capacity_factor: an expert takes at most C tokens, C = ceil(capacity_factor x k x T / E); None: no limit.
        eval_capacity_factor: the same in evaluation mode (Switch: 1.25 and 2.0); None: as in training.
        min_capacity: C is at least this (DeepSpeed: 4).
        capacity_by: C equal for all experts, or proportional to width: ceil(capacity_factor x k x T x h / sum h).
        priority: who comes first where C is reached. First choices before second ones; within a choice by
            position in the batch (GShard), or by the token's largest score (batch-prioritised,
            Rectify-Router).
        rectify: Rectify-Router. "ir": dropped tokens go to the best expert of their own rank, without a
            limit. "fr": k + 1 choices with the capacity of k, so that the last fills what would be padding.
            "fr+ir": both.
        when: which tokens "ir" serves: those that "all" chosen experts refused, that "any" refused, that
            "fewer" than k took.
        local_scale: weight of the local expert, for R experts that took the token: k - R (paper) or k + 1 - R
            (authors' code).
        ranks: number of simulated ranks, experts and tokens in contiguous shares; None: one expert per rank.
        skip: in evaluation mode an expert is left out whose score is below this share of the best one's
            (dynamic skipping, Lu et al. 2024; they take the median on a text, see `hmoe upcycle`); None: none
            is.
        jitter: in training the router's input is multiplied by uniform(1 - jitter, 1 + jitter) (Switch).
        gumbel: in training choices after the first are drawn: Gumbel noise is added to their logits
            (DeepSpeed's top-2).

    Raises:
        ConfigError: for a value out of range, or one without effect. What depends on the experts is checked
            where they are known.
    """

    k: Annotated[int, Whole(1)] = 2
    _: KW_ONLY
    renormalize: bool = True
    straight_through: bool = False
    scores: Literal["softmax", "sigmoid"] = "softmax"
    gate_scale: Annotated[float, Real(1e6, zero=False)] = 1.0
    groups: Annotated[int | None, Whole(1)] = None
    keep_groups: Annotated[int | None, Whole(1)] = None
    bias_rate: Annotated[float, Real(1, zero=True)] = 0.0
    bias_by: Literal["tokens", "compute"] = "tokens"
    capacity_factor: Annotated[float | None, Real(1e6, zero=False)] = None
    eval_capacity_factor: Annotated[float | None, Real(1e6, zero=False)] = None
    min_capacity: Annotated[int, Whole(0)] = 0
    capacity_by: Literal["equal", "width"] = "equal"
    priority: Literal["position", "score"] = "position"
    rectify: Literal["ir", "fr", "fr+ir"] | None = None
    when: Literal["all", "any", "fewer"] = "all"
    local_scale: Literal["k-r", "k+1-r"] = "k-r"
    ranks: Annotated[int | None, Whole(1)] = None
    skip: Annotated[float | None, Real(1, zero=True)] = None
    jitter: Annotated[float, Real(1, zero=True)] = 0.0
    gumbel: bool = False
    name: Literal["top_k"] = "top_k"

    def check_fields(self) -> None:
        """Raise ConfigError for fields that do not fit together."""
        if (self.groups is None) != (self.keep_groups is None) or (self.keep_groups or 0) > (
            self.groups or 0
        ):
            raise ConfigError(
                f"router.groups = {self.groups}, router.keep_groups = {self.keep_groups}: "
                "give both, keep_groups at most groups"
            )
        self._check_capacity_fields()
        if self.rectify:
            self.refuse_unused(
                "with rectify, whose gates sum to 1", "renormalize", "straight_through", "gate_scale"
            )
        if not self.renormalize:
            self.refuse_unused("on raw gates, which are not divided", "straight_through")
        if not self.bias_rate:
            self.refuse_unused("while bias_rate is 0", "bias_by")
        if self.skip == 0:
            raise ConfigError("router.skip = 0 has no effect: no score is below 0; remove it")
        if self.k == 1 or self.capacity_factor is not None:
            self.refuse_unused(
                "with k = 1" if self.k == 1 else "with a capacity, which drops by itself", "skip"
            )
        if self.k == 1 and not self._fills_in:
            self.refuse_unused("with k = 1, there is no second choice", "gumbel")

    def _check_capacity_fields(self) -> None:
        if self.capacity_factor is None:
            self.refuse_unused("without capacity_factor", *_OF_CAPACITY)
        if self.when == "all":
            self.refuse_unused("with when = all: nobody else took the token", "local_scale")
        if not self.uses_ranks:
            self.refuse_unused("unless rectify is ir or fr+ir", "when", "local_scale", "ranks")

    @property
    def title(self) -> str:
        """Return a name for people."""
        parts = [f"top-{self.k}"]
        parts += [f"capacity {self.capacity_factor:g}"] if self.capacity_factor is not None else []
        parts += [self.rectify] if self.rectify else []
        parts += ["sigmoid scores"] if self.scores == "sigmoid" else []
        parts += [f"{self.keep_groups} of {self.groups} groups"] if self.groups else []
        parts += ["balanced by a bias"] if self.bias_rate else []
        parts += ["weak ones skipped in evaluation"] if self.skips else []
        return ", ".join(parts)

    @property
    def score_function(self) -> str:
        """Return what makes scores of logits: softmax or sigmoid."""
        return self.scores

    @property
    def noise(self) -> Noise:
        """Return what training draws."""
        return Noise(self.jitter, self.gumbel)

    @property
    def bias_update(self) -> BiasUpdate | None:
        """Return how the bias moves against the load, or None without a bias."""
        return BiasUpdate(self.bias_rate, self.bias_by == "compute") if self.bias_rate else None

    @property
    def uses_ranks(self) -> bool:
        """Return whether dropped tokens go to an expert of their own rank."""
        return self.rectify in ("ir", "fr+ir")

    @property
    def _fills_in(self) -> bool:
        """Whether one more choice fills what would be padding."""
        return self.rectify in ("fr", "fr+ir")

    @property
    def skips(self) -> bool:
        """Return whether weak experts are left out in evaluation."""
        return self.skip is not None

    @property
    def gates_sum_to_one(self) -> bool:
        """Return whether a token's gates sum to 1."""
        return self.renormalize and self.gate_scale == 1

    @property
    def sum_to_one_remedy(self) -> str:
        """Return the overrides of a recipe that make the gates sum to 1."""
        remedies = [] if self.renormalize else ["model.moe.router.renormalize=true"]
        remedies += [] if self.gate_scale == 1 else ["model.moe.router.gate_scale=1"]
        return " ".join(remedies)

    def describe_assumption(self, num_experts: int) -> str:
        """Return what a plan assumes of the experts that a token takes."""
        dropless = "" if self.capacity_factor is None else ", nothing dropped or added"
        return f"top-{self.k}, every expert equally likely{dropless}"

    @property
    def choices(self) -> int:
        """Experts that a token asks for: k, and one more to fill in."""
        return self.k + self._fills_in

    def has_constant_gates(self, num_experts: int) -> bool:
        """Return whether a token's only gate is divided by itself."""
        straight = self.straight_through or self.rectify is not None
        return self.k == 1 and num_experts > 1 and self.renormalize and not straight

    def describe_remedy(self, num_experts: int) -> str:
        """Return which change lets a router with constant gates learn from the text."""
        return "router.straight_through = true or router.renormalize = false"

    def get_capacity(self, training: bool) -> float | None:
        """Return the factor of the most tokens that an expert may take; None: no limit."""
        return (
            self.eval_capacity_factor if not training and self.eval_capacity_factor else self.capacity_factor
        )

    def without_capacity(self) -> "TopK":
        """Return the same router without a capacity."""
        defaults = {name: get_default(TopK, name) for name in _OF_CAPACITY}
        return replace(self, capacity_factor=None, **defaults)

    def with_skip(self, share: float) -> "TopK":
        """Return the same router leaving out experts below this share of the best one's score."""
        if self.skips:
            raise ConfigError(
                f"moe.skip: the router is {self.title}; must be top-k without a skip of its own"
            )
        return replace(self, skip=share)

    def check_skip(self) -> None:
        """Raise ConfigError unless k is at least 2, without a capacity, and nothing is skipped yet."""
        if self.k < 2 or self.capacity_factor is not None:
            super().check_skip()
        if self.skips:
            raise ConfigError(
                "skip: this model skips experts already; remove moe.skip and router.skip from the recipe"
            )

    def count_experts_per_token(self, num_experts: int, training: bool = True) -> tuple[int, int, int]:
        """Return (fewest, expected, most) experts per token, before anything is dropped or added."""
        k = min(self.k, num_experts)
        if self.capacity_factor is None:
            return k if training or not self.skips else 1, k, k
        return int(self.uses_ranks), k, min(self.choices + self.uses_ranks, num_experts)

    def check_experts(self, num_experts: int) -> None:
        """Raise ConfigError if this router cannot serve so many experts."""
        if self.choices > num_experts:
            fill = " (rectify fills in with one more)" if self._fills_in else ""
            raise ConfigError(
                f"router.k = {self.k}, must be at most the number of experts, {num_experts}{fill}"
            )
        groups, keep = self.groups or 1, self.keep_groups or 1
        if num_experts % groups:
            raise ConfigError(f"router.groups = {groups}, must divide the number of experts, {num_experts}")
        if num_experts // groups * keep < self.choices:
            raise ConfigError(
                f"router.keep_groups = {keep}: {num_experts // groups * keep} experts, "
                f"must hold at least k = {self.choices}"
            )
        if self.ranks is not None and self.ranks > num_experts:
            raise ConfigError(
                f"router.ranks = {self.ranks}, must be at most the number of experts, {num_experts}"
            )

    def check_zero_experts(self, true_gates: bool) -> None:
        """Raise ConfigError if experts without hidden units make no sense with this router."""
        if true_gates and (self.rectify or not self.renormalize):
            raise ConfigError("zero.true_gates has no effect on gates that are raw or rectified; remove it")
        if self.bias_by == "compute":
            raise ConfigError(
                "zero: router.bias_by = compute would send every token to experts that cost nothing; tokens"
            )

    def describe_mixtral_fault(self, num_experts: int) -> str | None:
        """Return why Mixtral's router is not the same as this one, None if it is."""
        if not self.renormalize:
            return "gates are raw probabilities, Mixtral renormalises them over the chosen experts"
        for name in sorted(list_options(self).keys() - self._list_idle_fields(num_experts)):
            return f"router.{name} = {getattr(self, name)}, which Mixtral's router does not know"
        return None

    def _list_idle_fields(self, num_experts: int) -> set[str]:
        """Return the fields with which a trained model still chooses and weighs experts as plain top-k does."""
        names = {"k", "renormalize", *_OF_TRAINING}  # whether a bias has moved is a question about weights
        if self.keep_groups == self.groups:  # all of them
            names |= {"groups", "keep_groups"}
        factor = self.get_capacity(training=False)
        if (
            factor is not None
            and self.capacity_by == "equal"
            and not self.rectify
            and factor * self.k >= num_experts
        ):
            # every expert has room for all tokens
            names |= {"capacity_factor", "eval_capacity_factor", "min_capacity", "priority"}
        return names
