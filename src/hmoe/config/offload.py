"""Experts that lie outside of the device's memory: what a run holds of them, and what moves. No torch."""

from typing import Any, NamedTuple

from hmoe.config.hardware import Hardware
from hmoe.config.placement_costs import PlacementCosts
from hmoe.config.run import RunConfig
from hmoe.config.step_work import count_number_bytes
from hmoe.specs.offload import CHUNK_NUMBERS, MOST_WAITING_GRADIENTS, STORED_KINDS, count_fewest_bytes
from hmoe.specs.placement import EVEN_LOAD, ExpertLoad

_PART_AT_HAND = 4  # a quarter of the experts' weights, unless a run says otherwise


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
        """Bytes that a step reads."""
        passes = self.forward_read + self.backward_read + self.gradients_added
        return passes + self.norm_read + self.update_read

    @property
    def written(self) -> int:
        """Bytes that a step writes."""
        return self.gradients_written + self.update_written


class OffloadTimes(NamedTuple):
    """How long a step's transfers take by themselves, in seconds, those of the passes for each micro-batch.

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
    return max(weights // _PART_AT_HAND, fewest)


def count_held_bytes(config: RunConfig, share: float = 1.0) -> int:
    """Return the most bytes of the device's memory that experts which lie elsewhere take; 0 where none do.

    Weights, and what gradients and updates need.
    """
    moe = config.model.moe
    if moe is None or config.parallel.offload == "none":
        return 0
    size = count_number_bytes(config)
    widest = 3 * config.model.dim * max(moe.expert_widths)
    sets = MOST_WAITING_GRADIENTS + 1  # and one that is made
    # Gradients of a later micro-batch are added to a matrix of those that were written: both are there.
    adds = config.data.num_micro_batches > 1
    if (
        config.train.precision == "bfloat16"
    ):  # converted weights and gradients, and a matrix of these as float32
        gradients = 2 * widest * (1 + sets) + (1 + adds) * widest // 3 * size
    else:
        gradients = sets * widest * size + adds * widest // 3 * size
    scratch = len(STORED_KINDS) * min(CHUNK_NUMBERS, widest // 3) * size
    return choose_offload_bytes(config, share) + gradients + scratch


def count_traffic_of_offload(config: RunConfig, share: float = 1.0, num_processes: int = 1) -> OffloadTraffic:
    """Return about what a process moves in a step in which every expert is busy in every micro-batch.

    Weights that are at hand are not fetched again. Blocks that are recomputed need theirs twice.
    """
    weights = count_expert_bytes(config, share)
    fetched = round(weights * (1 - min(1.0, choose_offload_bytes(config, share) / max(weights, 1))))
    parts = config.data.num_micro_batches // num_processes
    return OffloadTraffic(
        forward_read=(parts - 1) * fetched,
        backward_read=parts * fetched * (1 + config.train.recomputes_blocks),
        gradients_written=parts * weights,
        gradients_added=(parts - 1) * weights,
        norm_read=weights if config.parallel.offload == "disk" else 0,  # by the host, from its own memory
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
        without: the same with all experts in it, and whether that fits.
    """
    traffic, weights = (
        count_traffic_of_offload(config, share, num_processes),
        count_expert_bytes(config, share),
    )
    return {
        "place": config.parallel.offload,
        "weight_bytes": weights,
        "at_hand_bytes": choose_offload_bytes(config, share),
        "stored_bytes": len(STORED_KINDS) * weights,
        "read_bytes": traffic.read,
        "written_bytes": traffic.written,
        "memory_bytes": memory_bytes,
        "memory_without_bytes": without[0],
        "fits_without": without[1],
    }
