"""What fine-tuning adds to transformers' Trainer: the routers' losses, and scores after every epoch."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback

from hmoe.adapt.duplicate import compute_noisy_balance, record_noisy_routers
from hmoe.adapt.finetune.scorers import Scorer
from hmoe.adapt.finetune.tasks import FinetuneTask
from hmoe.errors import NonFiniteError

_BALANCE = 1e-2  # coefficient of the noisy routers' loss (HyperMoE's GPT-2)
Say = Callable[[str], None]


class RouterLossCollator:
    """Collator of batches for which a Switch model adds its routers' auxiliary losses to the loss."""

    def __init__(self, inner: DataCollatorForSeq2Seq) -> None:
        self.inner = inner

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return one batch, which asks the model for the losses of its routers."""
        return {**self.inner(list(features)), "output_router_logits": True}


class BalancedTrainer(Trainer):  # type: ignore[misc]
    """Trainer that adds the balance loss of noisy routers, which the model's own loss does not have."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the model's loss plus 1e-2 times the sum of the noisy routers' balance losses."""
        with record_noisy_routers(model) as routers:
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if routers:
            balance = sum(compute_noisy_balance(*output) for output in routers)
            # The model's loss is divided by the items of all accumulated parts, so this is divided by their
            # number.
            loss = loss + _BALANCE / self.args.gradient_accumulation_steps * balance
        return (loss, outputs) if return_outputs else loss


class ScoreHistory(TrainerCallback):  # type: ignore[misc]
    """Callback that scores the model after every epoch, and ends a training whose numbers are not finite.

    Attributes:
        rows: epoch and scores, a row per epoch.
    """

    def __init__(self, task: FinetuneTask, score: Scorer, say: Say) -> None:
        self.task, self.score, self.say, self.rows = task, score, say, list[dict[str, float]]()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Raise NonFiniteError if the training loss that the trainer logs is NaN or infinite."""
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(float(loss)):
            raise NonFiniteError(
                f"{self.task.name}: the training loss is {loss} after epoch {state.epoch:g}; lower lr",
                argument="lr",
            )

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Score the model, and raise NonFiniteError if a score is NaN or infinite."""
        model.eval()
        with torch.no_grad():
            scores = self.score(model)
        model.train()
        if not all(map(math.isfinite, scores.values())):
            raise NonFiniteError(
                f"{self.task.name}: a score is not finite after epoch {state.epoch:g}: {scores}; lower lr",
                argument="lr",
            )
        self.rows.append({"epoch": round(state.epoch, 3), **scores})
        self.say(
            f"epoch {state.epoch:g}: " + ", ".join(f"{name} {value:.2f}" for name, value in scores.items())
        )
