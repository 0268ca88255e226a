"""The run folder while it is written: one process holds its lock, one config is kept. No torch."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hmoe.checkpoint.manifest import list_checkpoint_steps, read_newest_state
from hmoe.config import recipes
from hmoe.config.run import RunConfig
from hmoe.errors import ConfigError, RunBusyError
from hmoe.runs.config_binding import CONFIG, check_resumed_recipe
from hmoe.storage import lock_file, write_atomic


class RunFolder:
    """A locked run folder; the lock ends with the process, however it ends.

    Args:
        path: of the folder.
        config: that is trained there.
        writes: False for a process of a run that another one locks the folder for: this one changes nothing in it.

    Raises:
        RunBusyError: if another process is training here; names its pid.
        ConfigError: if the folder holds a run of another recipe, naming the key, or a recipe of somebody's own.
    """

    def __init__(self, path: Path, config: RunConfig, writes: bool = True) -> None:
        self.path, self._writes = path, writes
        if not writes:
            return
        try:
            if _holds_another_recipe(path, config):
                raise ConfigError(
                    f"{path}: holds a {CONFIG} that is no run's, which would be replaced; choose another folder"
                )
            path.mkdir(parents=True, exist_ok=True)
            self._lock = (path / ".lock").open("a+", encoding="utf-8", errors="replace")
        except OSError as error:
            raise ConfigError(f"{path}: cannot be a run folder: {error.strerror}") from None
        try:
            self._take_lock()
            state = read_newest_state(path)
            # Compared here already, before torch is imported and tensors are read.
            if state is not None:
                check_resumed_recipe(path, state, config, lambda _: None)
        except Exception:
            self._lock.close()
            raise

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writes:
            self._lock.close()

    def write(self, name: str, content: bytes) -> None:
        """Replace a file of the run folder in one rename; `name` may lie in a folder within it."""
        if not self._writes:
            return
        (self.path / name).parent.mkdir(exist_ok=True)
        write_atomic(self.path / name, content)

    def check_config(self, config: RunConfig, state: dict[str, Any], say: Callable[[str], None]) -> RunConfig:
        """Return a recipe that agrees with the checkpoint it continues, with what the run chose filled in.

        Raises:
            ConfigError: if it differs in a key that may not, naming it.
        """
        return check_resumed_recipe(self.path, state, config, say)

    def leads_elsewhere(self, config: RunConfig) -> bool:
        """Return whether a recipe's data.path is another one than config.yaml keeps."""
        try:
            kept = recipes.read_recipe(str(self.path / CONFIG))[1]
        except ConfigError:
            return True
        return (
            recipes.make_data_path_absolute(kept).data.path
            != recipes.make_data_path_absolute(config).data.path
        )

    def write_config(self, config: RunConfig) -> None:
        """Keep the recipe as config.yaml, with a data.path that leads to the data from everywhere."""
        content = recipes.dump_recipe(recipes.make_data_path_absolute(config)).encode()
        file = self.path / CONFIG
        if not file.is_file() or file.read_bytes() != content:
            self.write(CONFIG, content)

    def _take_lock(self) -> None:
        if not lock_file(self._lock):
            self._lock.seek(0)
            holder = self._lock.read().strip() or "?"
            raise RunBusyError(f"{self.path}: process {holder} is training in this folder")
        self._lock.truncate(0)
        self._lock.write(f"{os.getpid()}\n")
        self._lock.flush()


def _holds_another_recipe(path: Path, config: RunConfig) -> bool:
    """Return whether a folder in which nothing was trained holds a recipe, somebody's own, that differs from this."""
    if not (path / CONFIG).is_file() or (path / ".lock").exists() or list_checkpoint_steps(path):
        return False
    try:
        return bool(recipes.list_changed_values(recipes.read_recipe(str(path / CONFIG))[1], config))
    except ConfigError:
        return True
