"""Fine-tune and score: a model of transformers + a method + a task -> scores after every epoch, and the model."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
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

from hmoe.additions import Hyper
from hmoe.errors import CheckpointError, ConfigError
from hmoe.files import write_atomic
from hmoe.hub.attach import attach_hyper, attach_shared, expert_stacks
from hmoe.hub.duplicate import balance_loss, duplicate_mlps, heard
from hmoe.hub.finetune.answers import Answers, Perplexity, Quality, blocks, sequences
from hmoe.hub.finetune.data import load
from hmoe.hub.finetune.tasks import LANGUAGE, Settings, Task

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
    """
    task, settings = request.task, request.settings or request.task.settings
    examples, validation = load(task, request.data)
    examples, validation = examples[: request.train_examples], validation[: settings.eval_examples]
    set_seed(settings.seed)
    model, tokenizer = _open(request)
    if task.settings is LANGUAGE:
        features, collator = blocks(examples, tokenizer, settings), None
        score: Quality = Perplexity(validation, tokenizer, settings)
    else:
        features, collator = (
            sequences(task, examples, tokenizer, settings),
            Collator(DataCollatorForSeq2Seq(tokenizer, model)),
        )
        score = Answers(task, validation, tokenizer, settings)
    say(f"{task.name}: {len(features):,} training sequences, {len(validation):,} to be scored")
    history = _History(score, say)
    arguments = TrainingArguments(
        output_dir=str(out), num_train_epochs=settings.epochs, per_device_train_batch_size=settings.batch,
        learning_rate=settings.lr, weight_decay=settings.weight_decay, seed=settings.seed, eval_strategy="no",
        save_strategy="no", logging_strategy="epoch", report_to=[], disable_tqdm=True, remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )  # fmt: skip
    trainer = _Trainer(model=model, args=arguments, train_dataset=features, data_collator=collator, callbacks=[history])
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
    language = request.task.settings is LANGUAGE
    family = GPT2LMHeadModel if language else AutoModelForSeq2SeqLM
    try:
        tokenizer = AutoTokenizer.from_pretrained(request.model)
        model = family.from_pretrained(request.model)
    except Exception as error:  # whatever transformers, a hub or a network raises
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise CheckpointError(f"{request.model}: cannot be read as {family.__name__} ({why})") from None
    if language:
        duplicate_mlps(model)
    if request.method == "hyper":
        attach_hyper(model, Hyper())
    elif request.method == "share":
        attach_shared(model)
    expert_stacks(model)  # a model without experts is refused for the baseline too
    return model, tokenizer


class Collator:
    """Batches whose loss has the routers' auxiliary terms."""

    def __init__(self, inner: DataCollatorForSeq2Seq) -> None:
        self.inner = inner

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """One batch."""
        return {**self.inner(list(features)), "output_router_logits": True}


class _Trainer(Trainer):  # type: ignore[misc]
    """Adds the balance of noisy routers, which are no part of the model's own loss."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        with heard(model) as routers:
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if routers:
            loss = loss + _BALANCE / self.args.gradient_accumulation_steps * sum(
                balance_loss(*said) for said in routers
            )
        return (loss, outputs) if return_outputs else loss


class _History(TrainerCallback):  # type: ignore[misc]
    """Scores after every epoch."""

    def __init__(self, score: Quality, say: Say) -> None:
        self.score, self.say, self.rows = score, say, list[dict[str, float]]()

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Called by the trainer."""
        model.eval()
        with torch.no_grad():
            found = self.score(model)
        model.train()
        self.rows.append({"epoch": round(state.epoch, 3), **found})
        self.say(f"epoch {state.epoch:g}: " + ", ".join(f"{name} {value:.2f}" for name, value in found.items()))


def settings_of(task: Task, **changes: Any) -> Settings:
    """The paper's, with changes that are not None.

    Raises:
        ConfigError: for values out of range.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    for name, value in given.items():
        least = 0 if name in ("lr", "seed") else 1
        if not least <= value or (name == "lr" and not 0 < value < 1):
            raise ConfigError(
                f"{name} = {value}, must be {'above 0 and below 1' if name == 'lr' else f'at least {least}'}"
            )
    return replace(task.settings, **given)
