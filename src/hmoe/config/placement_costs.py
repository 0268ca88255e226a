"""What a step costs that places experts on processes: who computes more than others, and what travels. No torch."""

from hmoe.config.counts import count_parameters
from hmoe.config.hardware import Hardware, get_rate
from hmoe.config.run import RunConfig
from hmoe.config.step_work import FLOAT_BYTES, count_number_bytes
from hmoe.specs.placement import ExpertLoad

# Of a layer's forward pass: sizes, rows, gates, places, and rows back; all but sizes and places again backward.
_FORWARD_CALLS, _BACKWARD_CALLS = 5, 3


class PlacementCosts:
    """Experts that are placed on the processes of a group, the same ones in each group of a run.

    Attributes:
        group: processes among which they are placed.
        data_parallel: processes that hold the same ones, and share them.
        work: of the busiest process, in what falls to a process.
        rows: tokens that travel between it and others, for each token of its own.
        placed: parameters of experts that one process of a group holds, of all layers and processes.
        local: the most of them in one process, of which those that hold the same ones share each.
        local_share: of all experts' parameters.
    """

    def __init__(self, config: RunConfig, num_processes: int, load: ExpertLoad) -> None:
        self._config = config
        self.group = config.parallel.expert_ranks or num_processes
        self.data_parallel = num_processes // self.group
        self.work, self.rows = load.work, load.rows
        experts = count_parameters(config.model)["experts"]
        self.placed = (1 - load.replicas) * experts
        self.local = load.units * experts / self.group
        self.local_share = load.units / self.group

    def measure_travel(self, hardware: Hardware, num_tokens: int, backward: bool) -> float:
        """Return the seconds that the tokens of a micro-batch travel in a layer, or their gradients do."""
        if self.group == 1:
            return 0.0
        link = hardware.choose_link(self.group)
        element_bytes = 2 if self._config.train.precision == "bfloat16" else count_number_bytes(self._config)
        num_bytes = num_tokens * self.rows * self._config.model.dim * element_bytes
        rate = link.exchange_bytes_per_second or link.gather_bytes_per_second
        latency = link.latency_seconds + link.hop_seconds * (self.group - 1)
        calls = _BACKWARD_CALLS if backward else _FORWARD_CALLS
        return calls * latency + 2 * num_bytes / get_rate(rate, num_bytes * self.group)

    def count_local_bytes(self) -> float:
        """Return the bytes of a layer's experts that processes share which hold the same ones."""
        return FLOAT_BYTES * self.local / len(self._config.model.moe_layers)
