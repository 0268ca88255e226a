"""`hmoe.save`: a model of one's own loop becomes a folder that every verb opens."""

import os
from pathlib import Path
from typing import Any

from transformers.utils import logging

from hmoe.data.tokenizer import Tokenizer
from hmoe.errors import ConfigError
from hmoe.hub.export import ExportOptions, export_opened_model
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
    _check_parts(model, tokenizer, context)
    length = model.config.context if context is None else context
    if length is None:
        raise ConfigError(
            "context: missing, the tokens that the model was trained to read at once", argument="context"
        )
    if tokenizer.vocab_size > model.config.vocab:
        raise ConfigError(
            f"tokenizer: has {tokenizer.vocab_size} tokens, the model {model.config.vocab}; nearest is a model with "
            f"vocab = {tokenizer.vocab_size}"
        )
    if not os.fspath(folder):
        raise ConfigError(
            "folder: is empty; a path must be given, . for the current folder", argument="folder"
        )
    path = Path(folder)
    opened = OpenedModel(model, tokenizer, length, path.resolve().name, begin=tokenizer.begin)
    shows_bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # a loop of one's own has output of its own
    try:
        export_opened_model(opened, path, path, ExportOptions())
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror}", argument="folder") from None
    finally:
        if shows_bar:
            logging.enable_progress_bar()


def _check_parts(model: Any, tokenizer: Any, context: Any) -> None:
    """Raise ConfigError for arguments of another kind, which are told apart here and not deep inside."""
    if not isinstance(model, Transformer):
        raise ConfigError(
            f"model: is of type {type(model).__name__}, must be a Transformer of hmoe.model.transformer; an "
            "HMoEForCausalLM has save_pretrained", argument="model",
        )  # fmt: skip
    if not all(hasattr(tokenizer, name) for name in ("vocab_size", "fingerprint", "begin", "separator")):
        raise ConfigError(
            f"tokenizer: is of type {type(tokenizer).__name__}, must be one of hmoe.data.tokenizer, such as "
            "load_tokenizer(FILE)", argument="tokenizer",
        )  # fmt: skip
    if context is not None and (type(context) is not int or context < 1):
        raise ConfigError(
            f"context = {context!r}: must be a whole number of tokens, at least 1", argument="context"
        )
