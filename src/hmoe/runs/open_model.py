"""A run folder or a Hugging Face folder -> the model, its tokenizer, and what else evaluating and serving need."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hmoe.config.run import RunConfig
from hmoe.data import tokenizer as tokenizers
from hmoe.data.tokenizer import Tokenizer
from hmoe.errors import CheckpointError, ConfigError, DataError
from hmoe.model.meta import on_meta
from hmoe.model.transformer import Transformer
from hmoe.runs import families
from hmoe.runs.begin_tokens import run_begin
from hmoe.runs.config_binding import is_run
from hmoe.runs.config_keys import hint_absent, named_dtype
from hmoe.runs.open_run import open_run
from hmoe.runs.weights import Tensors, fill, hugging_face_name, is_head_apart
from hmoe.specs.model import ModelSpec

_LARGEST_JSON = 1 << 26  # bytes


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
    _check_templates(path, say)
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


def read_model(folder: Path, raw: dict[str, Any], dtype: torch.dtype | None = None) -> Transformer:
    """The model of a Hugging Face folder on the CPU, in the type that it names, else is stored in, or in `dtype`."""
    config, tensors = describe_folder(folder, raw)
    stored = named_dtype(raw, str(folder / "config.json"))
    if dtype is None:
        dtype = tensors[hugging_face_name("embed.weight")].dtype if stored is None else getattr(torch, stored)
    with on_meta():
        model = Transformer(config).to(dtype)
    model.to_empty(device="cpu")  # aligned in memory, as stored tensors are not
    try:
        fill(model, tensors, raw["model_type"], str(folder))
    except CheckpointError as error:
        raise CheckpointError(f"{error}{hint_absent(raw, raw['model_type'])}") from None
    return model


def describe_folder(folder: Path, raw: dict[str, Any]) -> tuple[ModelSpec, Tensors]:
    """What the model of a Hugging Face folder is, from its config.json and the tensors that it stores."""
    config, tensors = families.model_config(raw, str(folder / "config.json")), Tensors(folder)
    if config.tied and is_head_apart(tensors):
        config = replace(config, tied=False)
    return config, tensors


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ConfigError: if it is none.
    """
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise ConfigError(f"{path}: larger than {_LARGEST_JSON} bytes")
        tree = json.loads(path.read_bytes(), object_pairs_hook=_unique_keys)
    except ConfigError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must be a JSON object")
    return tree


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in pairs:
        if key in tree and tree[key] != value:
            raise ValueError(f"{key} stands there twice, as {tree[key]!r:.80} and as {value!r:.80}")
        tree[key] = value
    return tree


def folder_tokenizer(folder: Path) -> Tokenizer:
    """Raises DataError where there is none."""
    tokenizer = tokenizers.load(folder)
    if not tokenizer.file_name:
        raise DataError(f"{folder}: has no tokenizer.json and no tokenizer.model")
    return tokenizer


def chat_template(folder: Path) -> str | None:
    """Of several the one named default.

    Raises:
        ConfigError: if it cannot be read.
    """
    return chat_templates(folder).get("default")


def _check_templates(folder: Path, say: Callable[[str], None]) -> None:
    names = sorted(chat_templates(folder))
    if names and "default" not in names:
        say(
            f"{folder}: none of its chat templates is named default ({', '.join(names)}): chats are laid out as plain lines"
        )


def chat_templates(folder: Path) -> dict[str, str]:
    """By name, as transformers finds them: chat_template.jinja and additional_chat_templates/, else tokenizer_config.json.

    Raises:
        ConfigError: if one cannot be read.
    """
    files = {file.stem: file for file in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    if (folder / "chat_template.jinja").is_file():
        files["default"] = folder / "chat_template.jinja"
    templates = {}
    for name, file in files.items():
        try:
            templates[name] = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: cannot be read: {error}") from None
    config = folder / "tokenizer_config.json"
    if templates or not config.is_file():
        return templates
    template = read_json(config).get("chat_template")
    named = [row for row in template if isinstance(row, dict)] if isinstance(template, list) else []
    rows = [(row.get("name"), row.get("template")) for row in named] or [("default", template)]
    return {name: text for name, text in rows if isinstance(name, str) and isinstance(text, str)}


def template_files(folder: Path | None, default: str | None) -> Iterator[tuple[str, str]]:
    """(file name, content) of the templates of a folder, as transformers writes them.

    Raises:
        ConfigError: for a name that no file can have.
    """
    if default is not None:
        yield "chat_template.jinja", default
    for name, text in (chat_templates(folder) if folder is not None else {}).items():
        if not re.fullmatch(r"[\w][\w.-]*", name):
            raise ConfigError(f"{folder}: a chat template named {name!r}; must be letters, digits, '_', '-' and '.'")
        if name != "default":
            yield f"additional_chat_templates/{name}.jinja", text
