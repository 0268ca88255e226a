"""Which process of a run this one is, as torchrun and other launchers say in the environment. No torch."""

import os
from typing import NamedTuple

from hmoe.errors import ConfigError

STORE_VARIABLE = "HMOE_STORE"  # file where the processes meet that `hmoe.parallel.launcher` started
LOG_VARIABLE = "HMOE_LOG"  # file that the first of them keeps a copy of its output in
CANNOT_MEET = (
    "cannot meet the others"  # in an error whose cause is the process itself: the launcher looks for it
)


class ProcessNumbers(NamedTuple):
    """Number of this process and of all, and the same on this machine alone."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def read_process_numbers() -> ProcessNumbers:
    """Return what the launcher of this process says; one process where there was none.

    Raises:
        ConfigError: for variables that do not fit each other.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    texts = [os.environ.get(name) for name in names]
    if texts[0] is None or texts[1] is None:
        return ProcessNumbers()
    try:
        # Without the last two, all processes are on one machine.
        launch = ProcessNumbers(
            *(int(text if text is not None else texts[i - 2] or "") for i, text in enumerate(texts))
        )
    except ValueError:
        launch = ProcessNumbers(size=0)
    if not (0 <= launch.rank < launch.size and 0 <= launch.local_rank < launch.local_size <= launch.size):
        shown = ", ".join(
            f"{name} {'is not set' if text is None else f'= {text}'}"
            for name, text in zip(names, texts, strict=True)
        )
        raise ConfigError(
            f"the environment says: {shown}, which is no process of a run; start it by torchrun"
        )
    return launch
