"""`hmoe.save`: a model of one's own loop becomes a folder that every verb opens."""

import os
from pathlib import Path

from hmoe.data.tokenizer import Tokenizer
from hmoe.errors import ConfigError, make_missing_extra_error
from hmoe.model.transformer import Transformer
from hmoe.runs.open_model import OpenedModel


def save_model(
    model: Transformer, tokenizer: Tokenizer, folder: str | os.PathLike[str], context: int | None = None
) -> None:
    """Write a model and its tokenizer as a Hugging Face folder, which `hmoe.open` and every verb read.

        hmoe.save(model, tokenizer, "runs/mine", context=256)
        model, tokenizer = hmoe.open("runs/mine")    # or hmoe eval runs/mine --text FILE, hmoe import runs/mine RUN

    It is what `hmoe export` writes of a run. Texts of the model begin as the tokenizer says. Optimizer and data are not
    kept: to go on with training exactly, save those as your loop does.

    Args:
        model: on any device, in any type of weights.
        tokenizer: such as `hmoe.data.tokenizer.ByteTokenizer()` or `load_tokenizer(FILE)`.
        folder: must not exist, or be empty; it is there whole or not at all.
        context: tokens that the model was trained to read at once; None: what its spec says.

    Raises:
        ConfigError: if the folder is in use, neither `context` nor the spec says a length, the tokenizer has more
            tokens than the model, or transformers (the hf extra) is not installed.
    """
    length = context or model.config.context
    if length is None:
        raise ConfigError(
            "context: missing, the tokens that the model was trained to read at once", argument="context"
        )
    if tokenizer.vocab_size > model.config.vocab:
        raise ConfigError(
            f"tokenizer: has {tokenizer.vocab_size} tokens, the model {model.config.vocab}; nearest is a model with "
            f"vocab = {tokenizer.vocab_size}"
        )
    try:
        from hmoe.hub.export import ExportOptions, export_opened_model  # noqa: PLC0415 - optional extra
    except ImportError:
        raise make_missing_extra_error("Hugging Face folders", "hf") from None
    path = Path(folder)
    opened = OpenedModel(model, tokenizer, length, path.resolve().name, begin=tokenizer.begin)
    export_opened_model(opened, path, path, ExportOptions())
