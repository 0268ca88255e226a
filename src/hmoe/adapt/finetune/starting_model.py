"""The model that fine-tuning starts from: of the hub or of a folder, with what the method adds to it."""

import re
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer, GPT2LMHeadModel

from hmoe.adapt.attach import attach_hyper, attach_shared
from hmoe.adapt.duplicate import duplicate_mlps
from hmoe.adapt.finetune.settings import FinetuneSettings
from hmoe.adapt.finetune.tasks import FinetuneTask
from hmoe.adapt.moe_blocks import list_expert_stacks
from hmoe.errors import CheckpointError, ConfigError
from hmoe.model.memory import align_memory
from hmoe.specs.experts import Hyper


def open_starting_model(
    task: FinetuneTask, source: str, method: str, settings: FinetuneSettings
) -> tuple[Any, Any]:
    """Open a model with its tokenizer, and add to it what the method adds.

    A folder that was fine-tuned before comes with what was added to it then.

    Args:
        task: which decides the family: GPT-2 for a text, else Switch Transformers.
        source: folder, or name of the hub.
        method: of `hmoe.adapt.finetune.fine_tune.METHODS`.
        settings: the lengths that the model must be able to read.

    Raises:
        CheckpointError: for a model that cannot be read.
        ConfigError: for a model of another family, without experts, or fine-tuned before by another method;
            for a source length above what the model reads.
    """
    _check_place(source)
    model, tokenizer = _read_model(task, source)
    config, language = model.config, task.score is None
    if language and settings.source_length > config.n_positions:
        raise ConfigError(
            f"source_length = {settings.source_length}, must be at most the "
            f"{config.n_positions} tokens that {source} reads",
            argument="source_length",
        )
    marks = {"hyper": "hyper_experts", "share": "attached_shared_width"}
    earlier = next((name for name, mark in marks.items() if hasattr(config, mark)), None)
    if earlier not in (None, method):
        raise ConfigError(
            f"method = {method}: {source} was fine-tuned with {earlier}; nearest is {earlier}",
            argument="method",
        )
    folder = source if earlier else None
    if language:
        duplicate_mlps(model, folder=source if hasattr(config, "duplicated_mlps") else None)
    if method == "hyper":
        attach_hyper(model, None if earlier else Hyper(), folder)
    elif method == "share":
        attach_shared(model, folder=folder)
    list_expert_stacks(model)  # a model without experts is refused for the baseline too
    return model, tokenizer


def _read_model(task: FinetuneTask, source: str) -> tuple[Any, Any]:
    """Read a model of the family that a task is for, and its tokenizer, from a folder or the hub."""
    language = task.score is None
    family, kind = (GPT2LMHeadModel, "gpt2") if language else (AutoModelForSeq2SeqLM, "switch_transformers")
    try:
        config = AutoConfig.from_pretrained(source)
        if config.model_type == kind:
            tokenizer, model = AutoTokenizer.from_pretrained(source), family.from_pretrained(source)
    except Exception as error:  # whatever transformers, a hub or a network raises
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        place = "" if Path(source).is_dir() else "no folder here, and from the hub it "
        raise CheckpointError(f"{source}: {place}cannot be read as {kind} ({why})") from None
    if config.model_type != kind:
        raise ConfigError(f"{source}: is a {config.model_type} model; {task.name} is for {kind}")
    align_memory(model)  # transformers leaves weights askew in memory
    return model, tokenizer


def _check_place(source: str) -> None:
    """Raise CheckpointError for what is neither a folder with a model nor can be a name of the hub.

    Such a source is refused here, since transformers would ask the hub for it and tell of the network.
    """
    path = Path(source)
    if path.is_dir() and not (path / "config.json").is_file():
        raise CheckpointError(f"{source}: cannot be read: a folder without a config.json")
    if not path.is_dir() and (path.exists() or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", source)):
        what = "is a file" if path.exists() else "no such folder"
        raise CheckpointError(
            f"{source}: cannot be read: {what}; must be a folder, or a name of the hub such as google/switch-base-8"
        )
