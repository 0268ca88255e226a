"""Plants NaN, infinities and large numbers where a training step computes."""

import contextlib
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from hmoe.model import router, transformer
from hmoe.model.moe import MoE
from hmoe.train import loop, step
from hmoe.train.optimizer import compute_learning_rate
from hmoe.train.step import StepRecord
from tests.faults.campaign import check

GRADIENTS = ("embed.weight", "head.weight", "norm.weight", "blocks.0.attention.o_proj.weight",
             "blocks.1.ffn.router.weight", "blocks.0.ffn_norm.weight", "blocks.1.ffn.w_gate")  # fmt: skip


@dataclass
class Fault:
    """What is planted in which steps, and what came of it.

    Attributes:
        place: one of PLACES.
        value: added there, or multiplied by.
        steps: that are spoilt, counted from 0.
        parts: micro-batches of these steps that are spoilt.
        chance: fixes the token, the expert, the weight.
        skip: steps whose update is left out without computing anything: the run to compare with.
        planted: how often the fault was planted.
        applied: of each step whether its update was.
        active: whether the micro-batch that is being computed is to be spoilt.
    """

    place: str
    value: float
    steps: Collection[int]
    parts: Collection[int]
    chance: int
    skip: Collection[int] = ()
    planted: int = 0
    applied: dict[int, bool] = field(default_factory=dict)
    active: bool = False

    def spoil(self, tensor: torch.Tensor, row: int = 0) -> torch.Tensor:
        """Return a copy with one element spoilt, of a row of the last axis."""
        self.planted += 1
        flat = tensor.reshape(-1, tensor.shape[-1]) if tensor.dim() else tensor.reshape(1, 1)
        mask = torch.zeros_like(flat)
        mask[row % len(flat), self.chance % flat.shape[1]] = 1
        spoilt = torch.where(mask.bool(), flat + torch.full_like(flat, self.value), flat)
        return spoilt.reshape(tensor.shape)


NO_FAULT = Fault("", 0.0, (), (), 0)
FAULT = NO_FAULT


def begin_fault(fault: Fault) -> None:
    """Make the hooks plant this one from now on."""
    global FAULT
    FAULT = fault


def plant_hooks() -> None:
    """Put the faults' hooks where a step computes; the process ends with its case, so they stay."""
    real_loss: Any = vars(transformer)["cross_entropy"]
    real_route, real_experts = router.route_tokens, MoE.run_experts
    real_pass, real_step = step._accumulate, step.train_step

    def compute_loss(*arguments: Any) -> torch.Tensor:
        loss: torch.Tensor = real_loss(*arguments)
        if not (FAULT.active and FAULT.place == "loss"):
            return loss
        # An added number leaves gradients finite, a factor does not.
        return (
            FAULT.spoil(loss) if FAULT.chance % 2 else loss * FAULT.value + 0 * FAULT.spoil(loss.detach() * 0)
        )

    def route(logits_TE: torch.Tensor, *arguments: Any) -> Any:
        spoils = FAULT.active and FAULT.place == "router"
        return real_route(FAULT.spoil(logits_TE, FAULT.chance) if spoils else logits_TE, *arguments)

    def run_experts(layer: MoE, x_TD: torch.Tensor, routing: Any) -> torch.Tensor:
        y_TD = real_experts(layer, x_TD, routing)
        token_N = routing.token_N[routing.expert_N < len(layer.widths)]
        spoils = FAULT.active and FAULT.place == "expert" and len(token_N) > 0
        return FAULT.spoil(y_TD, int(token_N[FAULT.chance % len(token_N)])) if spoils else y_TD

    def compute_part(model: Any, part: Any, config: Any, number: int, loads: Any) -> Any:
        FAULT.active = number in FAULT.steps and part.index in FAULT.parts
        with hooked(model) if FAULT.active else contextlib.nullcontext():
            result = real_pass(model, part, config, number, loads)
        FAULT.active = False
        return result

    def take_step(model: Any, optimizer: Any, parts: Any, config: Any, number: int, *more: Any) -> StepRecord:
        if number in FAULT.skip:
            lr = compute_learning_rate(number, config.optim)
            terms = {"loss": math.nan, "loss_total": math.nan}
            return StepRecord(lr=lr, tokens=config.data.batch_tokens, applied=False, terms=terms)
        before = copy_state(model, optimizer)
        record = real_step(model, optimizer, parts, config, number, *more)
        FAULT.applied[number] = record.applied
        if not record.applied and config.parallel.offload == "none":
            check_same_state(before, copy_state(model, optimizer), number)
        return record

    places: tuple[tuple[Any, str, Any], ...] = (
        (transformer, "cross_entropy", compute_loss), (router, "route_tokens", route),
        (MoE, "run_experts", run_experts), (step, "_accumulate", compute_part), (loop, "train_step", take_step),
    )  # fmt: skip
    for owner, name, function in places:
        setattr(owner, name, function)


@contextlib.contextmanager
def hooked(model: Any) -> Iterator[None]:
    """Spoil what the embedding gives, or a gradient, while the context is open."""
    handles = []
    if FAULT.place == "embedding":
        handles.append(model.embed.register_forward_hook(lambda _, __, out: FAULT.spoil(out, FAULT.chance)))
    if FAULT.place == "gradient":
        weights = [p for name, p in model.named_parameters() if name in GRADIENTS and p.requires_grad]
        weight = weights[FAULT.chance % len(weights)]
        spoil: Callable[[torch.Tensor], torch.Tensor] = lambda g: FAULT.spoil(g, FAULT.chance)  # noqa: E731
        handles.append(weight.register_hook(spoil))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def copy_state(model: Any, optimizer: Any) -> dict[str, torch.Tensor]:
    """Return copies of all weights, and of all moments."""
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    for number, moments in enumerate(optimizer.state.values()):
        state |= {
            f"{number}.{name}": value.clone() for name, value in moments.items() if torch.is_tensor(value)
        }
    return state


def check_same_state(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], number: int) -> None:
    check(before.keys() == after.keys(), f"step {number + 1}: a skipped step makes or drops moments")
    for name, value in before.items():
        same = (
            value.contiguous()
            .view(-1)
            .view(torch.uint8)
            .equal(after[name].contiguous().view(-1).view(torch.uint8))
        )
        check(same, f"step {number + 1}: a skipped step changes {name}")
