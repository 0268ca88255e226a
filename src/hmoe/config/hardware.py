"""What a machine can do, as the simulation of a training step needs it: rates, bandwidths and latencies. No torch."""

import math
from importlib import resources
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from hmoe.config.recipe_errors import describe_problem
from hmoe.config.recipe_file import parse_tree, read_tree
from hmoe.config.section import Section
from hmoe.errors import ConfigError

_Positive = Annotated[float, Field(gt=0)]
Rate = _Positive | dict[int, _Positive]  # the same for all widths or sizes, or by them


class Link(Section):
    """What a collective operation takes: latency_seconds + hop_seconds x (processes - 1) + bytes sent / rate.

    Rates are the same for all sizes, or by the bytes of the whole, of which each process keeps its part.
    """

    gather_bytes_per_second: Annotated[Rate, Field(description="each process's, in an all-gather")]
    reduce_bytes_per_second: Annotated[Rate, Field(description="each process's, in a reduce-scatter")]
    exchange_bytes_per_second: Annotated[
        Rate | None, Field(description="each process's, in an all-to-all; null: as in an all-gather")
    ] = None
    latency_seconds: Annotated[float, Field(ge=0)] = 0.0
    hop_seconds: Annotated[float, Field(ge=0)] = 0.0


class Hardware(Section):
    """A machine, or several alike: what each process gets of it while all of them compute.

    Rates are what is reached in training, forward and backward, not what a data sheet promises.
    """

    device: Annotated[str, Field(pattern="^(cpu|cuda)$")] = "cuda"
    memory_bytes: Annotated[int, Field(gt=0, description="of each process")]
    processes_per_node: Annotated[int, Field(gt=0)]
    peak_flops: Annotated[_Positive, Field(description="of a data sheet, by which MFU is counted")]
    attention_flops: Annotated[Rate, Field(description="projections, per second")]
    scores_flops: Annotated[Rate, Field(description="causal attention between tokens")]
    # These two by the width of a model whose experts, or dense layer, have twice as many units.
    experts_flops: Annotated[Rate, Field(description="unequal experts")]
    ffn_flops: Annotated[Rate, Field(description="dense feed-forward layers")]
    head_flops: Annotated[Rate, Field(description="head and loss")]
    elementwise_bytes_per_second: Annotated[Rate, Field(description="norms, residuals, routing")]
    optimizer_bytes_per_second: _Positive
    block_seconds: Annotated[float, Field(ge=0, description="of a block and micro-batch, however small")] = (
        0.0
    )
    step_seconds: Annotated[float, Field(ge=0, description="of a step, however small")] = 0.0
    sharing_seconds: Annotated[float, Field(ge=0, description="besides, of a step that processes share")] = (
        0.0
    )
    host_bytes_per_second: Annotated[
        _Positive | None, Field(description="of a GPU, from its host's memory and to it; null: not known")
    ] = None
    disk_read_bytes_per_second: Annotated[_Positive | None, Field(description="null: not known")] = None
    disk_write_bytes_per_second: Annotated[_Positive | None, Field(description="null: not known")] = None
    overlap: Annotated[float, Field(ge=0, le=1, description="share of a transfer that computing hides")] = 1.0
    node: Annotated[Link, Field(description="between processes of one machine")]
    network: Annotated[Link | None, Field(description="between machines; null: there is one only")] = None

    def time_storage(self, place: str, read_bytes: float, written_bytes: float) -> float:
        """Return the seconds in which bytes come from a place and go there: disk, or host.

        Raises:
            ConfigError: if its rate is not known.
        """
        names = [f"disk_{verb}_bytes_per_second" for verb in ("read", "write")]
        rates = [
            getattr(self, name) for name in (names if place == "disk" else ["host_bytes_per_second"] * 2)
        ]
        if None in rates:
            needed = " and ".join(names) if place == "disk" else "host_bytes_per_second"
            raise ConfigError(
                f"hardware: parallel.offload = {place}: needs {needed}, which the machine's file does not say; "
                "`hmoe bench machine` measures a disk, whose rates can stand in a copy of the file",
                argument="hardware",
            )
        return float(read_bytes / rates[0] + written_bytes / rates[1])

    def choose_link(self, num_processes: int) -> Link:
        """Return what so many processes talk through; those of one machine are neighbours.

        Raises:
            ConfigError: if there are more than one machine has, and no network.
        """
        if num_processes <= self.processes_per_node:
            return self.node
        if self.network is None:
            raise ConfigError(
                f"{num_processes} processes: the machine has {self.processes_per_node}, and `network` is not given"
            )
        return self.network


def get_rate(rate: float | dict[int, float], width: float) -> float:
    """Return a rate at a width or a size: between two that are known on a line over the logarithm, else the nearest."""
    if not isinstance(rate, dict):
        return rate
    known = sorted(rate)
    below = max((w for w in known if w <= width), default=known[0])
    above = min((w for w in known if w >= width), default=known[-1])
    if below >= above:
        return rate[below if width >= below else above]
    share = math.log(width / below) / math.log(above / below)
    return math.exp((1 - share) * math.log(rate[below]) + share * math.log(rate[above]))


def list_machines() -> list[str]:
    """Return the names of the machines that are shipped."""
    files = resources.files("hmoe.config.machines").iterdir()
    return sorted(file.name[:-5] for file in files if file.name.endswith(".yaml"))


def read_hardware(name: str) -> Hardware:
    """Read a machine that is shipped, or a YAML file as `hmoe bench machine` writes it.

    Raises:
        ConfigError: naming what is wrong, and the machines that are shipped.
    """
    if name.endswith((".yaml", ".yml")):
        tree, where = read_tree(Path(name)), name
    elif name in list_machines():
        text = (resources.files("hmoe.config.machines") / f"{name}.yaml").read_text()
        tree, where = parse_tree(text, name), name
    else:
        raise ConfigError(
            f"hardware = {name}: must be a .yaml file or one of {', '.join(list_machines())}",
            argument="hardware",
        )
    try:
        return Hardware.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(f"{where}: {describe_problem(first)}") from None
