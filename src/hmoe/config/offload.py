"""Experts that lie outside of the device's memory: what a run holds of them, and what moves. No torch."""

from typing import Any, NamedTuple

from hmoe.config.hardware import Hardware
from hmoe.config.placement_costs import PlacementCosts
from hmoe.config.run import RunConfig
from hmoe.config.step_work import count_number_bytes
from hmoe.specs.offload import count_fewest_bytes
from hmoe.specs.placement import EVEN_LOAD, ExpertLoad

_HELD_SHARE = 4  # a quarter of the experts' weights, unless a run says otherwise
_GRADIENT_SETS = 3  # of an expert: those that are made, and those that wait to be written, or are
_CHUNK_NUMBERS = 1 << 20  # of a matrix, of its gradients and moments, that are updated at once


class OffloadTraffic(NamedTuple):
    """Bytes of a step that come from storage and go to it.

    Attributes:
        forward_read, backward_read: weights for the passes of each micro-batch.
        gradients_written, gradients_added: for each micro-batch, and read again to be added to for each but the first.
        norm_read: gradients, for their norm.
        update_read, update_written: weights, gradients and moments of the update, weights and moments after it; from
            there the first micro-batch's forward pass has its weights.
    """

    forward_read: int
    backward_read: int
    gradients_written: int
    gradients_added: int
    norm_read: int
    update_read: int
    update_written: int

    @property
    def read(self) -> int:
        """All that comes."""
        passes = self.forward_read + self.backward_read + self.gradients_added
        return passes + self.norm_read + self.update_read

    @property
    def written(self) -> int:
        """All that goes."""
        return self.gradients_written + self.update_written


class OffloadTimes(NamedTuple):
    """Seconds of what a pass of each micro-batch moves, and of reading gradients for their norm.

    Attributes:
        first_forward: of the first micro-batch, before which each expert is updated.
        forward, backward: weights of the others; of all.
        gradients: that a backward pass writes.
        norm: which nothing hides.
    """

    first_forward: float = 0.0
    forward: float = 0.0
    backward: float = 0.0
    gradients: float = 0.0
    norm: float = 0.0


def find_expert_share(config: RunConfig, num_processes: int, load: ExpertLoad | None) -> float:
    """Return the share of all experts that the fullest of a run's processes has."""
    if not config.parallel.places_experts or num_processes == 1:
        return 1.0
    return PlacementCosts(config, num_processes, load or EVEN_LOAD).local_share


def count_expert_bytes(config: RunConfig, share: float = 1.0) -> int:
    """Return the bytes of all routed experts' weights, or of a process's share of them."""
    moe = config.model.moe
    units = sum(moe.expert_widths) * len(config.model.moe_layers) if moe else 0
    return round(3 * config.model.dim * count_number_bytes(config) * units * share)


def choose_offload_bytes(config: RunConfig, share: float = 1.0) -> int:
    """Return the bytes of the device's memory for weights of experts: those given, else a quarter of a process's."""
    model = config.model
    assert model.moe is not None
    layers = [model.moe.expert_widths] * len(model.moe_layers)
    fewest = count_fewest_bytes(layers, model.dim, count_number_bytes(config))
    weights = count_expert_bytes(config, share)
    if config.parallel.offload_bytes is not None:
        return max(min(config.parallel.offload_bytes, weights), fewest)
    return max(weights // _HELD_SHARE, fewest)


def count_held_bytes(config: RunConfig, share: float = 1.0) -> int:
    """Return the most bytes of the device's memory that experts take: weights, and what gradients and updates need."""
    moe = config.model.moe
    assert moe is not None
    size = count_number_bytes(config)
    widest = 3 * config.model.dim * max(moe.expert_widths)
    converted = 2 * widest * (1 + _GRADIENT_SETS) if config.train.precision == "bfloat16" else 0
    # Gradients of a later micro-batch are added to those that were written: both are there.
    gradients = (_GRADIENT_SETS + (config.data.num_micro_batches > 1) / 3) * widest * size
    if converted:
        gradients = 2 * widest / 3 * size
    scratch = 4 * min(_CHUNK_NUMBERS, widest // 3) * size
    return choose_offload_bytes(config, share) + converted + round(gradients) + scratch


def count_traffic_of_offload(config: RunConfig, share: float = 1.0, num_processes: int = 1) -> OffloadTraffic:
    """Return what a step moves if every expert is busy in every micro-batch and nothing is at hand beforehand.

    What is at hand is not fetched again: weights are read once less for each pass, by its share.
    """
    weights = count_expert_bytes(config, share)
    fetched = round(weights * (1 - min(1.0, choose_offload_bytes(config, share) / max(weights, 1))))
    parts = config.data.num_micro_batches // num_processes
    return OffloadTraffic(
        forward_read=(parts - 1) * fetched,
        backward_read=parts * fetched,
        gradients_written=parts * weights,
        gradients_added=(parts - 1) * weights,
        norm_read=weights,
        update_read=4 * weights,
        update_written=3 * weights,
    )


def time_offload(
    config: RunConfig, hardware: Hardware, share: float = 1.0, num_processes: int = 1
) -> OffloadTimes:
    """Return the seconds that a step's transfers take by themselves.

    Raises:
        ConfigError: if the machine's file does not say how fast the place is.
    """
    place = config.parallel.offload
    if place == "none":
        return OffloadTimes()
    traffic = count_traffic_of_offload(config, share, num_processes)
    parts = config.data.num_micro_batches // num_processes
    return OffloadTimes(
        hardware.time_storage(place, traffic.update_read, traffic.update_written),
        hardware.time_storage(place, traffic.forward_read / max(parts - 1, 1), 0),
        hardware.time_storage(place, traffic.backward_read / parts, 0),
        hardware.time_storage(place, traffic.gradients_added / parts, traffic.gradients_written / parts),
        hardware.time_storage(place, traffic.norm_read, 0),
    )


def describe_offload_costs(
    config: RunConfig, share: float, num_processes: int, memory_bytes: int, without: tuple[int, bool]
) -> dict[str, Any]:
    """Return what `hmoe plan` tells of experts that lie elsewhere.

    Args:
        config: of the run.
        share, num_processes: of the experts that a process has, and all processes.
        memory_bytes: of the device, that a step needs.
        without: the same with all experts in it, and whether that would fit.
    """
    traffic, weights = (
        count_traffic_of_offload(config, share, num_processes),
        count_expert_bytes(config, share),
    )
    return {
        "place": config.parallel.offload,
        "weight_bytes": weights,
        "at_hand_bytes": choose_offload_bytes(config, share),
        "stored_bytes": 4 * weights,
        "read_bytes": traffic.read,
        "written_bytes": traffic.written,
        "memory_bytes": memory_bytes,
        "memory_without_bytes": without[0],
        "fits_without": without[1],
    }
