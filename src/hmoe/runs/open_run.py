"""A run folder -> its config, model and tokenizer, each compared with what the checkpoint says of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hmoe.checkpoint.state import restore_state
from hmoe.checkpoint.store import load_newest_checkpoint
from hmoe.config.run import RunConfig
from hmoe.data import tokenizer as tokenizers
from hmoe.data.tokenizer import Tokenizer
from hmoe.errors import CheckpointError, ConfigError
from hmoe.model.meta import build_on_meta
from hmoe.model.transformer import Transformer
from hmoe.runs.allocation import Allocate, allocate_in_memory
from hmoe.runs.config_binding import is_run_folder, read_run_config
from hmoe.runs.side_files import check_side_files


def open_run(
    run: Path, say: Callable[[str], None], allocate: Allocate = allocate_in_memory
) -> tuple[RunConfig, Transformer, Tokenizer, dict[str, Any]]:
    """Return config, model, tokenizer and newest state of a run folder; nothing in it is changed.

    Raises:
        ConfigError: if it is no run folder, or its config.yaml is not that of the checkpoint.
        CheckpointError: if there is no trustworthy checkpoint.
    """
    if not is_run_folder(run):
        raise ConfigError(f"{run}: not a run folder, it has no config.yaml; `hmoe train RECIPE` makes one")
    newest = load_newest_checkpoint(run, quarantine=False, say=say, optimizer=False)
    if newest is None:
        raise CheckpointError(
            f"{run}: no checkpoint yet; `hmoe train` writes one every train.save_every steps"
        )
    config = read_run_config(run, newest.state, say)
    tokenizer = tokenizers.load_tokenizer(run)
    if tokenizer.fingerprint != newest.state["tokenizer"]:
        raise CheckpointError(
            f"{run / tokenizer.file_name}: is not the tokenizer that the run was trained with"
        )
    check_side_files(run, newest.state, say)
    with build_on_meta():
        model = Transformer(config.model).to(next(iter(newest.model.values())).dtype)
    with allocate(model):
        restore_state(newest, model)
    return config, model.eval(), tokenizer, newest.state
