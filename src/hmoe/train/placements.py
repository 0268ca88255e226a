"""Where the experts of a run live: chosen when its model is built, from the load that its log tells."""

from collections.abc import Sequence

from hmoe.config.run import RunConfig
from hmoe.parallel.placement import place_all_experts
from hmoe.specs.placement import Placement, place_contiguously


def choose_placements(
    config: RunConfig, num_processes: int, shares_ZE: Sequence[Sequence[float]] | None = None
) -> list[Placement]:
    """Return the placement of each layer with experts.

    Args:
        config: of a run that places experts.
        num_processes: of the run.
        shares_ZE: of the tokens' choices that fell to each expert, zero-computation ones included; None: all alike.
    """
    parallel, moe = config.parallel, config.model.moe
    assert moe is not None  # checked by `check_processes`
    widths, num_ranks = moe.expert_widths, parallel.expert_ranks or num_processes
    if parallel.expert_placement == "contiguous":
        return [place_contiguously(widths, num_ranks)] * len(config.model.moe_layers)
    shares_ZE = shares_ZE or [[1.0] * len(widths)] * len(config.model.moe_layers)
    return place_all_experts(
        widths, num_ranks, [shares_E[: len(widths)] for shares_E in shares_ZE],
        cut=parallel.cut_experts, replicas=parallel.expert_replicas,
    )  # fmt: skip
