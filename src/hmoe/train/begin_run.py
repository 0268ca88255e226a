"""A run at step 0 with given weights, which training continues: how imported and upcycled models begin."""

from collections.abc import Iterable, Sequence

from hmoe.checkpoint.manifest import list_checkpoint_steps
from hmoe.checkpoint.state import capture_state
from hmoe.checkpoint.store import save_checkpoint
from hmoe.config.run import RunConfig
from hmoe.data.tokenizer import Tokenizer
from hmoe.data.tokenizer_folder import write_tokenizer
from hmoe.errors import ConfigError
from hmoe.model.transformer import Transformer
from hmoe.runs.config_binding import dump_bound_config
from hmoe.runs.run_folder import RunFolder
from hmoe.runs.side_files import hash_side_files
from hmoe.train.environment import describe_environment
from hmoe.train.session import RunCounts


def begin_run(
    folder: RunFolder,
    config: RunConfig,
    model: Transformer,
    tokenizer: Tokenizer,
    begin_tokens: Sequence[int],
    side_files: Iterable[tuple[str, bytes]] = (),
) -> None:
    """Write the checkpoint of step 0 into a locked folder, without moments of AdamW, bound to no data yet.

    Args:
        folder: must hold no run yet.
        config: recipe of the run.
        model: its weights are those of step 0.
        tokenizer: the model's own.
        begin_tokens: those that every text of the model begins with; the data must have the same.
        side_files: (name, content) of what a model brings with its tokenizer; the checkpoint binds them.

    Raises:
        ConfigError: if the folder holds a run already.
    """
    if list_checkpoint_steps(folder.path):
        raise ConfigError(f"{folder.path}: holds a run already; choose another folder")
    for name, content in side_files:
        folder.write(name, content)
    write_tokenizer(folder.path, tokenizer)
    state = {
        "counts": vars(RunCounts()),
        "watch": None,
        "data": None,
        "tokenizer": tokenizer.fingerprint,
        "begin": list(begin_tokens),
        "config": dump_bound_config(config),
        "side_files": hash_side_files(folder.path),
        "environment": describe_environment(),
    }
    save_checkpoint(folder.path, capture_state(0, model, None, state), config.train.keep)
    # Last: a folder that has a config has the weights too, and is never trained from random ones.
    folder.write_config(config)
