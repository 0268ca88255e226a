"""A run folder or a Hugging Face folder -> the model, its tokenizer, and what else evaluating and serving need."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hmoe.checkpoint import open_run
from hmoe.config import RunConfig
from hmoe.data.tokenizer import Tokenizer
from hmoe.model.transformer import Transformer


@dataclass(frozen=True)
class Opened:
    """A model that is ready to read text.

    Attributes:
        model: in evaluation mode, on the GPU where there is one.
        context_length: tokens it was trained to read at once.
        name: of the folder.
        step: training steps taken, None where the folder does not say.
        chat_template: the folder's Jinja template for conversations, if it has one.
        run: recipe of the run, None for a Hugging Face folder.
    """

    model: Transformer
    tokenizer: Tokenizer
    context_length: int
    name: str
    step: int | None = None
    chat_template: str | None = None
    run: RunConfig | None = None


def open_model(path: Path, say: Callable[[str], None]) -> Opened:
    """Open a run folder at its newest checkpoint that verifies, or a Hugging Face folder.

    Raises:
        ConfigError, DataError, CheckpointError: naming what cannot be used.
    """
    config, model, tokenizer, step = open_run(path, say)
    name = path.resolve().name
    return Opened(model, tokenizer, config.data.sequence_length, name, step, None, config)
