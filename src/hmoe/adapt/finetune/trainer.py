"""What fine-tuning adds to transformers' Trainer: the routers' losses, and scores after every epoch."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback

from hmoe.adapt.duplicate import balance_loss, heard
from hmoe.adapt.finetune.scorers import Quality
from hmoe.adapt.finetune.tasks import Task
from hmoe.errors import NonFiniteError

_BALANCE = 1e-2  # of the noisy router's loss (HyperMoE's GPT-2)
Say = Callable[[str], None]


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


class ScoreHistory(TrainerCallback):  # type: ignore[misc]
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
