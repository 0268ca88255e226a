"""A run folder or a Hugging Face folder -> the model, its tokenizer, and what else evaluating and serving need."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from hmoe.config.run import RunConfig
from hmoe.data.tokenizer import Tokenizer
from hmoe.errors import ConfigError, DataError
from hmoe.model.transformer import Transformer
from hmoe.runs.begin_tokens import run_begin
from hmoe.runs.chat_templates import chat_template, check_templates
from hmoe.runs.config_binding import is_run
from hmoe.runs.hf_folder import folder_tokenizer, read_json, read_model
from hmoe.runs.open_run import open_run


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
        begin: tokens that every text of the model begins with, such as LLaMA's <s>; recorded in a run's checkpoints.
        data: fingerprint of the data that a run was trained on, None before it was and for a Hugging Face folder.
        folder: where it was opened.
    """

    model: Transformer
    tokenizer: Tokenizer
    context_length: int
    name: str
    step: int | None = None
    chat_template: str | None = None
    run: RunConfig | None = None
    begin: tuple[int, ...] = ()
    data: str | None = None
    folder: Path | None = None


def open_model(path: Path, say: Callable[[str], None]) -> Opened:
    """Open a run folder at its newest checkpoint that verifies, or a Hugging Face folder.

    Raises:
        ConfigError, DataError, CheckpointError: naming what cannot be used.
    """
    name = path.resolve().name
    check_templates(path, say)
    if is_run(path):
        config, model, tokenizer, state = open_run(path, say)
        step, begin = state["step"], run_begin(state, tokenizer)
        template = chat_template(path)
        length = config.model.context or config.data.sequence_length
        return Opened(model, tokenizer, length, name, step, template, config, begin, state["data"], path)
    if not (path / "config.json").is_file():
        raise ConfigError(
            f"{path}: not a run folder (no config.yaml) and not a Hugging Face folder (no config.json); "
            "`hmoe train RECIPE` makes a run folder"
        )
    raw = read_json(path / "config.json")
    tokenizer = folder_tokenizer(path)
    model = read_model(path, raw)
    if tokenizer.vocab_size > model.config.vocab:
        raise DataError(f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab}")
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    assert model.config.context is not None  # every family says
    length, template = model.config.context, chat_template(path)
    return Opened(model.eval(), tokenizer, length, name, None, template, None, tokenizer.begin, None, path)
