"""A run at step 0 with given weights, which `hmoe train` continues: how imported and upcycled models begin."""

from collections.abc import Sequence

from hmoe import checkpoint
from hmoe.checkpoint import Checkpoint
from hmoe.config import RunConfig
from hmoe.data.tokenizer import Tokenizer
from hmoe.data.tokenizer_folder import write_tokenizer
from hmoe.errors import ConfigError
from hmoe.model.transformer import Transformer
from hmoe.train.run_folder import RunFolder
from hmoe.train.session import Counts, environment


def begin(
    folder: RunFolder, config: RunConfig, model: Transformer, tokenizer: Tokenizer, begin_tokens: Sequence[int]
) -> None:
    """Write the checkpoint of step 0; AdamW starts without moments, the data is chosen when training starts.

    `begin_tokens` are those that every text of the model begins with; the data must have the same.

    Raises:
        ConfigError: if the folder holds a run already.
    """
    if any((folder.path / "checkpoints").glob("step-*")):
        raise ConfigError(f"{folder.path}: holds a run already; choose another folder")
    write_tokenizer(folder.path, tokenizer)
    state = {
        "step": 0,
        "counts": vars(Counts()),
        "watch": None,
        "data": None,
        "tokenizer": tokenizer.fingerprint,
        "begin": list(begin_tokens),
        "environment": environment(),
    }
    weights = {name: parameter.detach().cpu() for name, parameter in model.named_parameters()}
    checkpoint.save(folder.path, Checkpoint(0, weights, {}, state), config.train.keep)
