"""What binds a run folder: the config in its checkpoint, which config.yaml and every recipe must agree with.

No torch is imported, so that a recipe that does not fit is refused at once.
"""

import json
import reprlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from hmoe.checkpoint.manifest import list_checkpoint_steps, read_newest_state
from hmoe.config import recipes
from hmoe.config.run import CHOSEN, RESUMABLE, RunConfig
from hmoe.errors import CheckpointError, ConfigError

CONFIG = "config.yaml"
LOST_PATH = "(lost with config.yaml)"  # stands for data.path where only a checkpoint is left
State = dict[str, Any]
_KINDS = ("router.name", "widths.shape")  # endings of keys that say what kind of thing others describe
_SHOWN_KEYS = 5


def is_run_folder(path: Path) -> bool:
    """Return whether a folder is one that training or an import made, even if its config.yaml is lost."""
    return (path / CONFIG).is_file() or bool(list_checkpoint_steps(path))


def find_run_folder(path: Path) -> Path | None:
    """Return the run folder that a path is, or whose config.yaml it is; None for any other path.

    A config.yaml in a folder where nothing was trained is a recipe like any other file.
    """
    if path.name == CONFIG and not path.is_dir():
        was_begun = (path.parent / ".lock").exists() or bool(list_checkpoint_steps(path.parent))
        return path.parent if was_begun else None
    return path if is_run_folder(path) else None


def dump_bound_config(config: RunConfig) -> dict[str, Any]:
    """Return what a checkpoint holds of its config: every key but those that may differ on resume."""
    tree = config.model_dump(mode="json")
    # The embedded corpus is a name, not a place: it cannot lie elsewhere, so it binds.
    for key in RESUMABLE - ({"data.path"} if config.data.path == "corpus" else set()):
        section, _, name = key.partition(".")
        del tree[section][name]
    if config.parallel.without_offload() == type(config.parallel)():
        del tree["parallel"]  # checkpoints of one process are those of versions that knew no others
    return tree


def load_recorded_config(state: State) -> RunConfig | None:
    """Return the config that a checkpoint holds, with stand-ins for what may differ.

    None stands for a checkpoint that was written before checkpoints held their config.

    Raises:
        CheckpointError: if this version of hmoe cannot read it.
    """
    if "config" not in state:
        return None
    tree = state["config"]
    data, train = {"path": LOST_PATH, **tree["data"]}, {**tree["train"], "steps": max(1, state["step"])}
    try:
        return recipes.check_recipe({**tree, "data": data, "train": train})
    except ConfigError as error:
        raise CheckpointError(
            f"{_name(state)}: its config does not fit this version of hmoe: {error}"
        ) from None


def fill_chosen_values(config: RunConfig, state: State) -> RunConfig:
    """Return the config, with what it leaves unset as the run chose it when it began, on whatever device."""
    recorded = load_recorded_config(state)
    if recorded is None or state["data"] is None:  # not begun: nothing is chosen yet
        return config
    for key in CHOSEN:
        section, _, name = key.partition(".")
        values, chosen = getattr(config, section), getattr(getattr(recorded, section), name)
        if getattr(values, name) is None:
            config = config.model_copy(update={section: values.model_copy(update={name: chosen})})
    return config


def check_bound_config(
    state: State, config: RunConfig, where: str, advice: str, say: Callable[[str], None]
) -> None:
    """Raise ConfigError if a config differs from the one that a checkpoint holds in a key that binds.

    Before training has begun only the model is bound; what else differs is said.

    Raises:
        ConfigError: naming the key and both values.
    """
    recorded = load_recorded_config(state)
    changed = {} if recorded is None else recipes.list_changed_values(recorded, config)
    # What kind of thing it is comes first: with it all other keys are other ones, too.
    changed = dict(sorted(changed.items(), key=lambda item: not item[0].endswith(_KINDS)))
    begun = state["data"] is not None
    for key, (old, new) in changed.items():
        values = f"{_shown(new)} in {where}, {_shown(old)} in the checkpoint"
        if begun or key.startswith("model."):
            others = f" (changed keys: {_list_some(changed)})" if len(changed) > 1 else ""
            raise ConfigError(f"{key}: differs from {_name(state)}: {values}{others}; {advice}")
        say(f"{key}: {values}; training has not begun, so the former is used")


def _list_some(keys: Collection[str]) -> str:
    first = list(keys)[:_SHOWN_KEYS]
    return ", ".join(first) + (f" and {len(keys) - len(first)} more" if len(keys) > len(first) else "")


def read_run_config(run: Path, state: State, say: Callable[[str], None]) -> RunConfig:
    """Read the config of a run at a checkpoint: config.yaml, or the checkpoint's own where that is lost.

    Raises:
        ConfigError: if config.yaml was changed in a key that binds, or is lost and the checkpoint holds none.
    """
    file = run / CONFIG
    recorded = load_recorded_config(state)
    try:
        config = recipes.read_recipe(str(file))[1]
    except ConfigError as error:
        if recorded is None:
            raise ConfigError(_irreplaceable(error, state)) from None
        say(
            f"{_lost(error)}: its recipe is read from {_name(state)}, without budgets and data.path, "
            "which only the file held"
        )
        return recorded
    if recorded is None:
        say(
            f"{_name(state)} of {run} was written before checkpoints held their config: {file} is not checked"
        )
    check_bound_config(state, config, str(file), _advice(file), say)
    return fill_chosen_values(config, state)


def check_resumed_recipe(run: Path, state: State, config: RunConfig, say: Callable[[str], None]) -> RunConfig:
    """Compare the recipe that is to continue a run with its checkpoint; say what is wrong with config.yaml.

    Returns:
        The recipe, with what it leaves unset as the run chose it.

    Raises:
        ConfigError: if the recipe differs in a key that binds, naming it.
    """
    advice = (
        "a resumed run may change only budgets, logging, train.save_every, how processes share it, and where data and "
        "device are; "
        "choose another run folder"
    )
    try:
        written = recipes.read_recipe(str(run / CONFIG))[1]
    except ConfigError as error:
        if "config" not in state:
            raise ConfigError(_irreplaceable(error, state)) from None
        check_bound_config(state, config, "the recipe", advice, say)
        say(f"{_lost(error)}: written again from this recipe, which agrees with {_name(state)}")
        return fill_chosen_values(config, state)
    # A checkpoint of an earlier version holds no config: then config.yaml is the only witness.
    if "config" not in state:
        say(f"{_name(state)} was written before checkpoints held their config: compared with {run / CONFIG}")
        state = {**state, "config": dump_bound_config(written)}
    check_bound_config(state, config, "the recipe", advice, say)
    # An edited config.yaml stops nobody here, since the recipe that continues the run replaces it.
    try:
        check_bound_config(state, written, str(run / CONFIG), "written again", lambda _: None)
    except ConfigError as error:
        say(str(error))
    return fill_chosen_values(config, state)


def load_run_recipe(run: Path, overrides: Sequence[str], say: Callable[[str], None]) -> RunConfig:
    """Read the config of a run folder as a recipe: config.yaml, or its newest checkpoint where that is lost.

    Raises:
        ConfigError: if nothing holds it, the file was changed in a key that binds, or an override does not fit.
    """
    file, state = run / CONFIG, read_newest_state(run)
    if state is None:
        return recipes.read_recipe(str(file), overrides)[1]
    recorded = load_recorded_config(state)
    try:
        written = recipes.read_recipe(str(file))[1]
    except ConfigError as error:
        if recorded is None:
            raise ConfigError(_irreplaceable(error, state)) from None
        say(
            f"{_lost(error)}: its recipe is read from {_name(state)}; budgets and data.path, "
            "which only the file held, must be given"
        )
        return recipes.check_recipe(state["config"], overrides)
    check_bound_config(state, written, str(file), _advice(file), lambda _: None)
    return fill_chosen_values(recipes.read_recipe(str(file), overrides)[1], state)


def _name(state: State) -> str:
    return f"the checkpoint of step {state['step']}"


def _shown(value: Any) -> str:
    return reprlib.repr(value) if isinstance(value, str) else json.dumps(value)[:80]


def _advice(file: Path) -> str:
    return f"set it back, or remove {file}: then the checkpoint's config is read"


def _lost(error: ConfigError) -> str:
    return f"{error}; the run's {CONFIG} is lost or damaged"


def _irreplaceable(error: ConfigError, state: State) -> str:
    return (
        f"{error}; {_name(state)} was written before checkpoints held their config, so put the file back, "
        "or write it with `hmoe config RECIPE`"
    )
