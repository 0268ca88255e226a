"""A Hugging Face folder + a recipe for the rest -> everything a run at step 0 needs."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from hmoe.config import recipes
from hmoe.config.run import RunConfig
from hmoe.data.tokenizer import Tokenizer
from hmoe.errors import ConfigError
from hmoe.model.transformer import Transformer
from hmoe.runs.chat_templates import iterate_template_files, read_default_template
from hmoe.runs.hf_folder import (
    check_vocabulary,
    describe_hf_folder,
    load_hf_tokenizer,
    read_hf_model,
    read_json_object,
)
from hmoe.specs.losses import list_loss_keys


def import_hf_model(
    source: Path, recipe: str, overrides: Sequence[str]
) -> tuple[RunConfig, Transformer, Tokenizer]:
    """Return a recipe with the folder's model in it, the model in training precision, and its tokenizer.

    Overrides may change the keys under data, optim and train, and the auxiliary losses.

    Raises:
        ConfigError, DataError, CheckpointError: naming what cannot be used.
    """
    if not (source / "config.json").is_file():
        what = "not a Hugging Face folder, it has no config.json" if source.exists() else "no such folder"
        raise ConfigError(f"{source}: {what}")
    raw = read_json_object(source / "config.json")
    model, _ = describe_hf_folder(source, raw)
    # A recipe is UTF-8, a folder's name need not be.
    name = source.resolve().name.encode(errors="replace").decode()
    config = recipes.replace_model(recipe, model, overrides, data_path=f"data/{name}")
    for key in recipes.list_changed_values(config.model_copy(update={"model": model}), config):
        if key.removeprefix("model.moe.") not in list_loss_keys():
            raise ConfigError(
                f"{key}: comes from {source}; only data, optim, train and auxiliary losses can be overridden"
            )
    dtype = torch.float64 if config.train.precision == "float64" else torch.float32
    tokenizer = load_hf_tokenizer(source)
    check_vocabulary(source, tokenizer, model)
    return config, read_hf_model(source, raw, dtype), tokenizer


def read_side_files(source: Path, tokenizer: Tokenizer) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of the side files that a run keeps of the folder which its model comes from.

    These are chat templates, the names of special tokens, and the tokens that end a text.
    """
    for name, text in iterate_template_files(source, read_default_template(source)):
        yield name, text.encode()
    if (source / "tokenizer_config.json").is_file():
        named = read_json_object(source / "tokenizer_config.json")
        named.pop("chat_template", None)
        yield "tokenizer_config.json", (json.dumps(named, indent=1) + "\n").encode()
    if len(tokenizer.ends) > 1:
        yield "generation_config.json", (json.dumps({"eos_token_id": list(tokenizer.ends)}) + "\n").encode()
