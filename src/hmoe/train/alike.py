"""What the processes of a run must have in common, and what is said where they have not."""

import json
from collections.abc import Callable
from typing import Any, cast

import torch

from hmoe import __version__
from hmoe.config import recipes
from hmoe.config.run import RunConfig
from hmoe.errors import ConfigError
from hmoe.train.processes import Processes


def check_alike(
    config: RunConfig, device: str, fingerprint: str, processes: Processes, warn: Callable[[str], None]
) -> None:
    """Raise ConfigError if a process would train another run than the first one.

    Args:
        config: as this process has it, with what it chose for its device.
        device: its kind.
        fingerprint: of the data that it reads.
        processes: of the run.
        warn: is told if they compute with processors of different kinds, by the first one.
    """
    recipe = recipes.make_data_path_absolute(config).model_dump(mode="json")
    own: dict[str, Any] = dict(recipes.flatten_tree(recipe))
    own |= {"device": device, "data": fingerprint, "torch": torch.__version__, "hmoe": __version__}
    own = json.loads(json.dumps(own))
    del own["data.path"]  # the same data may lie elsewhere
    first = processes.broadcast(own)
    with processes.together():
        for key in first | own:
            if own.get(key) != first.get(key):
                raise ConfigError(
                    f"{key}: is {own.get(key)} in process {processes.rank}, {first.get(key)} in the first one; "
                    "all processes of a run must have the same"
                )
    _warn_of_other_processors(device, processes, warn)


def _warn_of_other_processors(device: str, processes: Processes, warn: Callable[[str], None]) -> None:
    """Say that copies of weights are not compared where processes compute with processors of different kinds."""
    if processes.size == 1:
        return
    from hmoe.parallel.copies import describe_arithmetic  # noqa: PLC0415 - one process needs no engine, slow to import

    own = describe_arithmetic(device)
    for rank, each in enumerate(cast(Any, processes).gather_values(own)):
        if each != own and processes.rank == 0:
            warn(
                f"process {rank} computes with {each}, this one with {own}, which may round otherwise: copies of "
                "weights are not compared before they are saved"
            )
            return
