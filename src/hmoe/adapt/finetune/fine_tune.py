"""Fine-tune and score: a model of transformers + a method + a task -> scores after every epoch, and the model."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import DataCollatorForSeq2Seq, PrinterCallback, TrainingArguments, set_seed

from hmoe.adapt.finetune.features import blocks, count_cut_heads, sequences
from hmoe.adapt.finetune.load_examples import load
from hmoe.adapt.finetune.scorers import Answers, Perplexity, Quality
from hmoe.adapt.finetune.settings import Settings
from hmoe.adapt.finetune.starting_model import open_starting_model
from hmoe.adapt.finetune.tasks import Task
from hmoe.adapt.finetune.trainer import BalancedTrainer, Collator, Say, ScoreHistory
from hmoe.errors import ConfigError
from hmoe.storage import write_atomic

METHODS = ("moe", "share", "hyper")


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
    model, tokenizer = open_starting_model(
        task, request.model, request.method, settings
    )  # before data, which may come over the network
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
    history = ScoreHistory(task, score, say)
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
