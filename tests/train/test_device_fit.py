"""A run that does not fit is told what would help, and each of these is possible."""

from typing import Any

import pytest

from hmoe import ConfigError
from hmoe.config import recipes
from hmoe.config.memory import Device
from hmoe.config.processes import check_processes
from hmoe.train.console import Console
from hmoe.train.device_fit import fit_config
from hmoe.train.processes import ONE_PROCESS
from tests.conftest import tiny


class Two:
    """What `fit_config` asks of two processes."""

    size, rank, local_size = 2, 0, 2


@pytest.mark.parametrize(
    ("processes", "overrides", "advice"),
    [
        (ONE_PROCESS, [], "lower model sizes or set parallel.offload"),
        (ONE_PROCESS, ["parallel.offload=disk"], "lower model sizes or lower parallel.offload_bytes"),
        (Two(), [], "lower model sizes or set parallel.offload and parallel.experts = expert_parallel"),
        (Two(), ["parallel.experts=expert_parallel"], "lower model sizes or set parallel.offload"),
        (Two(), ["parallel.exact=true"], "lower model sizes"),
    ],
)
def test_what_would_help_is_possible(processes: Any, overrides: list[str], advice: str) -> None:
    overrides = [*tiny("tiny"), "data.micro_batches=4", "train.activation_checkpointing=true", *overrides]
    config = recipes.read_recipe("tiny", overrides)[1]
    with pytest.raises(ConfigError) as error:
        fit_config(config, Device("cpu", 1000), Console(), processes)
    assert str(error.value).endswith(f"see `hmoe plan`, then {advice}")
    more = ["parallel.offload=disk"] if "set parallel.offload" in advice else []
    more += ["parallel.experts=expert_parallel"] if "expert_parallel" in advice else []
    check_processes(recipes.read_recipe("tiny", [*overrides, *more])[1], processes.size)
