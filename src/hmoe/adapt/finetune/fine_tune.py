"""Fine-tune and score: a model of transformers + a method + a task -> scores after every epoch, and the model."""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    GPT2LMHeadModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from hmoe.adapt.attach import attach_hyper, attach_shared, expert_stacks
from hmoe.adapt.duplicate import balance_loss, duplicate_mlps, heard
from hmoe.adapt.finetune.load_examples import load
from hmoe.adapt.finetune.scorers import Answers, Perplexity, Quality, blocks, count_cut_heads, sequences
from hmoe.adapt.finetune.tasks import Settings, Task
from hmoe.errors import CheckpointError, ConfigError, NonFiniteError
from hmoe.model.memory import align_memory
from hmoe.specs.experts import Hyper
from hmoe.storage import write_atomic

METHODS = ("moe", "share", "hyper")
_BALANCE = 1e-2  # of the noisy router's loss (HyperMoE's GPT-2)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What to fine-tune.

    Attributes:
        model: folder or name of the hub: a Switch Transformers model, GPT-2 for wikitext2.
        method: moe (the model as it is), share (an expert for all tokens, of as many parameters), or hyper.
        data: folder of local files, None: the hub.
        train_examples: used of the training split, the first ones; None: all.
    """

    task: Task
    model: str
    method: str = "hyper"
    data: Path | None = None
    settings: Settings | None = None
    train_examples: int | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"method = {self.method}, must be one of {', '.join(METHODS)}")


def finetune(request: Request, out: Path, say: Say = lambda line: None) -> dict[str, Any]:
    """Fine-tune by the paper's recipe; `out` gets the model, its tokenizer and results.json, which is returned.

    Raises:
        ConfigError: for a model or settings that do not fit.
        CheckpointError: for a model that cannot be read.
        DataError: for data that cannot be read.
        NonFiniteError: if the loss or a score becomes NaN or infinite.
    """
    task, settings = request.task, request.settings or request.task.settings
    set_seed(settings.seed)
    model, tokenizer = _open(request)  # before data, which may come over the network
    examples, validation = load(task, request.data)
    examples, validation = examples[: request.train_examples], validation[: settings.eval_examples]
    if task.score is None:
        features, collator = blocks(examples, tokenizer, settings), None
        score: Quality = Perplexity(validation, tokenizer, settings)
    else:
        features, collator = (
            sequences(task, examples, tokenizer, settings),
            Collator(DataCollatorForSeq2Seq(tokenizer, model)),
        )
        score = Answers(task, validation, tokenizer, settings)
        cut = count_cut_heads(validation, tokenizer, settings)
        if cut:
            say(
                f"warning: {cut:,} distinct questions leave no room for a context in source_length = {settings.source_length} tokens and "
                "are cut; raise --source-length"
            )
    if getattr(model.config, "duplicated_mlps", {"k": 0})["k"] == 1:
        say(
            "warning: the routers are top-1 with renormalised gates, as the paper's: the text gives them no gradient, only their "
            "balance loss moves them"
        )
    say(f"{task.name}: {len(features):,} training sequences, {len(validation):,} to be scored")
    history = _History(task, score, say)
    arguments = TrainingArguments(
        output_dir=str(out), num_train_epochs=settings.epochs, per_device_train_batch_size=settings.batch,
        learning_rate=settings.lr, weight_decay=settings.weight_decay, seed=settings.seed, eval_strategy="no",
        save_strategy="no", logging_strategy="epoch", report_to=[], disable_tqdm=True, remove_unused_columns=False,
        logging_nan_inf_filter=False, dataloader_pin_memory=torch.cuda.is_available(),
    )  # fmt: skip
    trainer = BalancedTrainer(
        model=model, args=arguments, train_dataset=features, data_collator=collator, callbacks=[history]
    )
    trainer.remove_callback(PrinterCallback)  # the history says it
    trainer.train()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    result = {
        "task": task.name, "model": request.model, "method": request.method, "parameters": parameters,
        "settings": asdict(settings), "train_sequences": len(features), "scored": len(validation), "epochs": history.rows,
        "best": max(history.rows, key=score.quality),
    }  # fmt: skip
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    write_atomic(out / "results.json", (json.dumps(result, indent=1) + "\n").encode())
    return result


def _open(request: Request) -> tuple[Any, Any]:
    """Model and tokenizer; of a folder that was fine-tuned before, with what was added to it then."""
    language, source = request.task.score is None, request.model
    family, kind = (GPT2LMHeadModel, "gpt2") if language else (AutoModelForSeq2SeqLM, "switch_transformers")
    _check_place(source)
    try:
        config = AutoConfig.from_pretrained(source)
        if config.model_type == kind:
            tokenizer, model = AutoTokenizer.from_pretrained(source), family.from_pretrained(source)
    except Exception as error:  # whatever transformers, a hub or a network raises
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        place = "" if Path(source).is_dir() else "no folder here, and from the hub it "
        raise CheckpointError(f"{source}: {place}cannot be read as {kind} ({why})") from None
    if config.model_type != kind:
        raise ConfigError(f"{source}: is a {config.model_type} model; {request.task.name} is for {kind}")
    align_memory(model)
    settings = request.settings or request.task.settings
    if language and settings.source_length > config.n_positions:
        raise ConfigError(
            f"source_length = {settings.source_length}, must be at most the {config.n_positions} tokens that {source} reads"
        )
    marks = {"hyper": "hyper_experts", "share": "attached_shared_width"}
    before = next((method for method, mark in marks.items() if hasattr(config, mark)), None)
    if before not in (None, request.method):
        raise ConfigError(f"method = {request.method}: {source} was fine-tuned with {before}; nearest is {before}")
    folder = source if before else None
    if language:
        duplicate_mlps(model, folder=source if hasattr(config, "duplicated_mlps") else None)
    if request.method == "hyper":
        attach_hyper(model, None if before else Hyper(), folder)
    elif request.method == "share":
        attach_shared(model, folder=folder)
    expert_stacks(model)  # a model without experts is refused for the baseline too
    return model, tokenizer


def _check_place(source: str) -> None:
    """What can be no name of the hub must be a folder with a model.

    Raises:
        CheckpointError: naming what is wrong with it.
    """
    path = Path(source)
    if path.is_dir() and not (path / "config.json").is_file():
        raise CheckpointError(f"{source}: cannot be read: a folder without a config.json")
    if not path.is_dir() and (path.exists() or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", source)):
        what = "is a file" if path.exists() else "no such folder"
        raise CheckpointError(
            f"{source}: cannot be read: {what}; must be a folder, or a name of the hub such as google/switch-base-8"
        )


class Collator:
    """Batches whose loss has the routers' auxiliary terms."""

    def __init__(self, inner: DataCollatorForSeq2Seq) -> None:
        self.inner = inner

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """One batch."""
        return {**self.inner(list(features)), "output_router_logits": True}


class BalancedTrainer(Trainer):  # type: ignore[misc]
    """Adds the balance of noisy routers, which are no part of the model's own loss."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The model's loss and 1e-2 times what the noisy routers' balance is."""
        with heard(model) as routers:
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if routers:
            loss = loss + _BALANCE / self.args.gradient_accumulation_steps * sum(
                balance_loss(*said) for said in routers
            )
        return (loss, outputs) if return_outputs else loss


class _History(TrainerCallback):  # type: ignore[misc]
    """Scores after every epoch."""

    def __init__(self, task: Task, score: Quality, say: Say) -> None:
        self.task, self.score, self.say, self.rows = task, score, say, list[dict[str, float]]()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Called by the trainer."""
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(float(loss)):
            raise NonFiniteError(
                f"{self.task.name}: the training loss is {loss} after epoch {state.epoch:g}; lower --lr"
            )

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Called by the trainer."""
        model.eval()
        with torch.no_grad():
            found = self.score(model)
        model.train()
        if not all(map(math.isfinite, found.values())):
            raise NonFiniteError(
                f"{self.task.name}: a score is not finite after epoch {state.epoch:g}: {found}; lower --lr"
            )
        self.rows.append({"epoch": round(state.epoch, 3), **found})
        self.say(f"epoch {state.epoch:g}: " + ", ".join(f"{name} {value:.2f}" for name, value in found.items()))


def settings_of(task: Task, **changes: Any) -> Settings:
    """The paper's, with changes that are not None.

    Raises:
        ConfigError: for values out of range.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    for name, value in given.items():
        least, most = {"seed": (0, 2**32 - 1), "source_length": (2, 2**20)}.get(name, (1, 10**9))
        if name == "lr" and not 0 < value < 1:
            raise ConfigError(f"lr = {value}, must be above 0 and below 1")
        if name != "lr" and not least <= value <= most:
            raise ConfigError(f"{name} = {value}, must be from {least} to {most}")
    return replace(task.settings, **given)
