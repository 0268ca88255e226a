"""Fine-tune a model of transformers on a task by a method, and score it after every epoch."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import DataCollatorForSeq2Seq, PrinterCallback, TrainingArguments, set_seed

from hmoe.adapt.finetune.example import TaskExample
from hmoe.adapt.finetune.features import count_cut_heads, cut_text_blocks, encode_training_sequences
from hmoe.adapt.finetune.load_examples import load_task_examples
from hmoe.adapt.finetune.scorers import AnswerScorer, PerplexityScorer, Scorer
from hmoe.adapt.finetune.settings import FinetuneSettings
from hmoe.adapt.finetune.starting_model import open_starting_model
from hmoe.adapt.finetune.tasks import FinetuneTask
from hmoe.adapt.finetune.trainer import BalancedTrainer, RouterLossCollator, Say, ScoreHistory
from hmoe.errors import ConfigError
from hmoe.storage import write_atomic

METHODS = ("moe", "share", "hyper")


@dataclass(frozen=True)
class FinetuneRequest:
    """What is fine-tuned, and how.

    Attributes:
        task: what it learns.
        model: folder or name of the hub: a Switch Transformers model, or a GPT-2 for wikitext2.
        method: moe (the model as it is), share (one more expert, for all tokens), or hyper (HyperExperts).
        data: folder of local files; None: the hub.
        settings: lengths, learning rate and more; None: the task's, which are the paper's.
        train_examples: so many of the training split are used, the first ones; None: all.
    """

    task: FinetuneTask
    model: str
    method: str = "hyper"
    data: Path | None = None
    settings: FinetuneSettings | None = None
    train_examples: int | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(
                f"method = {self.method}, must be one of {', '.join(METHODS)}", argument="method"
            )


def finetune_model(request: FinetuneRequest, out: Path, say: Say = lambda line: None) -> dict[str, Any]:
    """Fine-tune a model by the paper's recipe, write it to a folder, and return its results.

    Args:
        request: what is fine-tuned, and how.
        out: folder that gets the model of the last epoch, its tokenizer and results.json.
        say: is told of progress and warnings, a line at a time.

    Raises:
        ConfigError: for a model or settings that do not fit.
        CheckpointError: for a model that cannot be read.
        DataError: for data that cannot be read.
        NonFiniteError: if the loss or a score becomes NaN or infinite.
    """
    task, settings = request.task, request.settings or request.task.settings
    set_seed(settings.seed)
    # The model first: data may come over the network, and take long.
    model, tokenizer = open_starting_model(task, request.model, request.method, settings)
    examples, validation = load_task_examples(task, request.data)
    examples, validation = examples[: request.train_examples], validation[: settings.eval_examples]
    features, collator, score = _prepare(task, settings, examples, validation, model, tokenizer)
    _warn(validation, model, tokenizer, settings, say)
    say(f"{task.name}: {len(features):,} training sequences, {len(validation):,} to be scored")
    history = ScoreHistory(task, score, say)
    trainer = BalancedTrainer(
        model, _training_arguments(settings, out), collator, train_dataset=features, callbacks=[history]
    )
    trainer.remove_callback(PrinterCallback)  # the history says it
    trainer.train()
    result = {
        "task": task.name, "model": request.model, "method": request.method,
        "parameters": sum(parameter.numel() for parameter in model.parameters()), "settings": asdict(settings),
        "train_sequences": len(features), "scored": len(validation), "epochs": history.rows,
        "best": max(history.rows, key=score.quality),
    }  # fmt: skip
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    # Written last: where it is, the model is whole.
    write_atomic(out / "results.json", (json.dumps(result, indent=1) + "\n").encode())
    return result


def _prepare(
    task: FinetuneTask,
    settings: FinetuneSettings,
    examples: list[TaskExample],
    validation: list[TaskExample],
    model: Any,
    tokenizer: Any,
) -> tuple[list[dict[str, Any]], RouterLossCollator | None, Scorer]:
    """Return what is trained on, its collator (None: the trainer's own), and the score."""
    if task.score is None:
        return (
            cut_text_blocks(examples, tokenizer, settings),
            None,
            PerplexityScorer(validation, tokenizer, settings),
        )
    collator = RouterLossCollator(DataCollatorForSeq2Seq(tokenizer, model))
    return (
        encode_training_sequences(task, examples, tokenizer, settings),
        collator,
        AnswerScorer(task, validation, tokenizer, settings),
    )


def _warn(
    validation: list[TaskExample], model: Any, tokenizer: Any, settings: FinetuneSettings, say: Say
) -> None:
    """Say what makes the results worse than they might be."""
    num_cut = count_cut_heads(validation, tokenizer, settings)
    if num_cut:
        say(
            f"warning: {num_cut:,} distinct questions leave no room for a context in "
            f"source_length = {settings.source_length} tokens and are cut; raise source_length"
        )
    if getattr(model.config, "duplicated_mlps", {"k": 0})["k"] == 1:
        say(
            "warning: the routers are top-1 with renormalised gates, as the paper's: the text gives them no "
            "gradient, only their balance loss moves them"
        )


def _training_arguments(settings: FinetuneSettings, out: Path) -> TrainingArguments:
    """Return the options of transformers' trainer, which itself neither scores nor saves."""
    return TrainingArguments(
        output_dir=str(out), num_train_epochs=settings.epochs, per_device_train_batch_size=settings.batch,
        learning_rate=settings.lr, weight_decay=settings.weight_decay, seed=settings.seed, eval_strategy="no",
        save_strategy="no", logging_strategy="epoch", report_to=[], disable_tqdm=True, remove_unused_columns=False,
        logging_nan_inf_filter=False, dataloader_pin_memory=torch.cuda.is_available(),
    )  # fmt: skip
