"""A run folder or a Hugging Face folder -> its model, its tokenizer, and what evaluating and serving need."""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hmoe.config.run import RunConfig
from hmoe.data.tokenizer import Tokenizer
from hmoe.errors import ConfigError
from hmoe.model.transformer import Transformer
from hmoe.runs.allocation import Allocate, allocate_in_memory
from hmoe.runs.begin_tokens import read_recorded_begin
from hmoe.runs.chat_templates import check_chat_templates, read_default_template
from hmoe.runs.config_binding import find_run_folder, is_run_folder
from hmoe.runs.hf_folder import check_vocabulary, load_hf_tokenizer, read_hf_model, read_json_object
from hmoe.runs.open_run import open_run


@dataclass(frozen=True)
class OpenedModel:
    """A model that is ready to read text.

    Attributes:
        model: in evaluation mode, on the GPU where there is one.
        context_length: tokens it was trained to read at once.
        name: of the folder.
        step: training steps taken, None where the folder does not say.
        chat_template: the folder's Jinja template for conversations, if it has one.
        run: recipe of the run, None for a Hugging Face folder.
        begin: tokens that every text of the model begins with, such as LLaMA's <s>; a run's checkpoints record it.
        data: fingerprint of the data that a run was trained on, None before that and for a Hugging Face folder.
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


def open_model(
    path: Path, say: Callable[[str], None], allocate: Allocate = allocate_in_memory
) -> OpenedModel:
    """Open a run folder at its newest checkpoint that verifies, or a Hugging Face folder.

    Args:
        path: of the folder.
        say: is told of faults.
        allocate: gives the model memory.

    Raises:
        ConfigError, DataError, CheckpointError: naming what cannot be used.
    """
    path = find_run_folder(path) or path
    check_chat_templates(path, say)
    if is_run_folder(path):
        return _from_run(path, say, allocate)
    if not path.exists():
        raise ConfigError(f"{path}: no such folder; must be a run folder or a Hugging Face folder")
    if not (path / "config.json").is_file():
        raise ConfigError(
            f"{path}: not a run folder (no config.yaml) and not a Hugging Face folder (no config.json); "
            "`hmoe train RECIPE` makes a run folder"
        )
    return _from_hugging_face(path, allocate)


def open_model_and_tokenizer(path: str | os.PathLike[str]) -> tuple[Transformer, Tokenizer]:
    """Open a run folder or a Hugging Face folder, and return its model and its tokenizer.

        model, tokenizer = hmoe.open("runs/quickstart")
        [ids] = tokenizer.encode(["She was"])
        logits, routings = model(torch.tensor([ids], device=model.head_weight.device))

    A run folder is opened at its newest checkpoint that verifies, and nothing in it is changed. The model is
    in evaluation mode, on the GPU where there is one, in the type of the stored weights. The ids of a text do
    not hold the tokens that the model's texts begin with, such as LLaMA's <s>.

    Warns:
        UserWarning: what is amiss with the folder though it can be used, such as a damaged newest checkpoint.

    Raises:
        ConfigError: if it is neither kind of folder, or its config cannot be used.
        DataError, CheckpointError: if its tokenizer or its weights cannot be used.
    """
    faults: list[str] = []
    opened = open_model(Path(path), faults.append)
    for fault in faults:  # only now: here the frame above is the caller, whom the warning names
        warnings.warn(fault, stacklevel=2)
    return opened.model, opened.tokenizer


def _from_run(path: Path, say: Callable[[str], None], allocate: Allocate) -> OpenedModel:
    config, model, tokenizer, state = open_run(path, say, allocate)
    return OpenedModel(
        model=model,
        tokenizer=tokenizer,
        context_length=config.model.context or config.data.sequence_length,
        name=path.resolve().name,
        step=state["step"],
        chat_template=read_default_template(path),
        run=config,
        begin=read_recorded_begin(state, tokenizer),
        data=state["data"],
        folder=path,
    )


def _from_hugging_face(path: Path, allocate: Allocate) -> OpenedModel:
    raw = read_json_object(path / "config.json")
    tokenizer = load_hf_tokenizer(path)
    model = read_hf_model(path, raw, allocate=allocate)
    check_vocabulary(path, tokenizer, model.config)
    assert model.config.context is not None  # every family says
    return OpenedModel(
        model=model.eval(),
        tokenizer=tokenizer,
        context_length=model.config.context,
        name=path.resolve().name,
        chat_template=read_default_template(path),
        begin=tokenizer.begin,
        folder=path,
    )
