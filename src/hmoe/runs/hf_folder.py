"""A Hugging Face folder -> its model, its tokenizer, and its JSON files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hmoe.config.counts import count_parameters
from hmoe.data import tokenizer as tokenizers
from hmoe.data.tokenizer import Tokenizer
from hmoe.errors import CheckpointError, ConfigError, DataError
from hmoe.model.meta import build_on_meta
from hmoe.model.transformer import Transformer
from hmoe.runs import families
from hmoe.runs.allocation import Allocate, allocate_on_cpu
from hmoe.runs.config_keys import hint_absent, named_dtype
from hmoe.runs.weight_names import name_hf_weight
from hmoe.runs.weights import StoredTensors, fill_model, is_head_apart
from hmoe.specs.model import ModelSpec

_LARGEST_JSON = 1 << 26  # bytes
# A tensor that is missing, or that two parameters share, is named where it is read.
_MOST_TIMES, _FEW_PARAMETERS = 2, 10**7


def read_hf_model(
    folder: Path, raw: dict[str, Any], dtype: torch.dtype | None = None, allocate: Allocate = allocate_on_cpu
) -> Transformer:
    """Read the model of a Hugging Face folder.

    Args:
        raw: the folder's config.json.
        dtype: type of the weights; None: the one that config.json names, else the one they are stored in.
        allocate: gives it memory.

    Raises:
        ConfigError, CheckpointError: naming what hmoe has no place for, or what is missing.
    """
    config, tensors = describe_hf_folder(folder, raw)
    _check_size(folder, config, tensors, hint_absent(raw, raw["model_type"]))
    stored = named_dtype(raw, str(folder / "config.json"))
    if dtype is None:
        dtype = tensors[name_hf_weight("embed.weight")].dtype if stored is None else getattr(torch, stored)
    with build_on_meta():
        model = Transformer(config).to(dtype)
    with allocate(model):
        try:
            fill_model(model, tensors, raw["model_type"], str(folder))
        except CheckpointError as error:
            raise CheckpointError(f"{error}{hint_absent(raw, raw['model_type'])}") from None
    return model


def _check_size(folder: Path, config: ModelSpec, tensors: StoredTensors, hint: str) -> None:
    """Raise CheckpointError for a model far larger than its files, before memory is taken for it."""
    num_parameters, num_stored = sum(count_parameters(config).values()), tensors.count_numbers()
    if num_parameters > _MOST_TIMES * num_stored + _FEW_PARAMETERS:
        raise CheckpointError(
            f"{folder}: config.json describes {num_parameters:,} parameters, the files hold {num_stored:,} "
            f"numbers{hint}"
        )


def check_vocabulary(folder: Path, tokenizer: Tokenizer, model: ModelSpec) -> None:
    """Raise DataError if a folder's tokenizer gives tokens that its model does not have."""
    if tokenizer.vocab_size > model.vocab:
        raise DataError(f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model {model.vocab}")


def describe_hf_folder(folder: Path, raw: dict[str, Any]) -> tuple[ModelSpec, StoredTensors]:
    """Return what the model of a Hugging Face folder is, and its tensors, which are read on demand.

    Raises:
        ConfigError, CheckpointError: naming what cannot be used.
    """
    config, tensors = families.read_family_model(raw, str(folder / "config.json")), StoredTensors(folder)
    # Folders that say so may still store a head of their own, which then counts, as in transformers.
    if config.tied and is_head_apart(tensors):
        config = replace(config, tied=False)
    return config, tensors


def load_hf_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer of a Hugging Face folder.

    Raises:
        DataError: if there is none.
    """
    tokenizer = tokenizers.load_tokenizer(folder)
    if not tokenizer.file_name:
        raise DataError(f"{folder}: has no tokenizer.json and no tokenizer.model")
    return tokenizer


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        ConfigError: if it is no JSON object, is too large, or holds a key twice with different values.
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
