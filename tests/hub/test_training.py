"""Fine-tuning with the tools that people use: Trainer, peft's LoRA on attention and on experts, accelerate."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from hmoe.hub import HMoEForCausalLM
from tests.hub.helpers import model

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)


def rows(count: int = 32) -> list[dict[str, torch.Tensor]]:
    """Sequences that count upwards, which a small model learns at once."""
    sequences = []
    for first in range(count):
        ids = torch.arange(first % 9, first % 9 + 12) + 3
        sequences.append({"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)})
    return sequences


def loss_of(built: Any) -> float:
    with torch.no_grad():
        batch = {name: torch.stack([row[name] for row in rows(8)]) for name in rows(1)[0]}
        return float(built(**batch).loss)


def test_trainer_lowers_the_loss_and_its_checkpoint_loads(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    built = model(output_router_logits=True)
    before = loss_of(built)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=12, per_device_train_batch_size=8, learning_rate=1e-2, logging_steps=4,
        save_steps=12, report_to=[], use_cpu=not torch.cuda.is_available(), gradient_checkpointing=True, seed=0,
    )  # fmt: skip
    trainer = Trainer(model=built, args=arguments, train_dataset=rows())  # type: ignore[no-untyped-call]
    trainer.train()
    built.eval()
    after = loss_of(built)
    assert after < 0.7 * before
    saved = HMoEForCausalLM.from_pretrained(tmp_path / "checkpoint-12").eval()
    assert loss_of(saved) == pytest.approx(after, rel=1e-5)
    assert "eval_loss" in trainer.evaluate(rows(8))


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    """Also of the auxiliary losses, which a trainer does not divide by itself.

    They are a mean over tokens of a micro-batch.
    """
    from transformers import Trainer, TrainingArguments

    same = rows(1) * 4  # equal rows have equal statistics, however they are batched
    losses = []
    for size, parts in ((4, 1), (1, 4)):
        arguments = TrainingArguments(
            output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=size, gradient_accumulation_steps=parts,
            logging_steps=1, save_strategy="no", report_to=[], use_cpu=not torch.cuda.is_available(), seed=0,
        )  # fmt: skip
        torch.manual_seed(0)
        trainer = Trainer(model=model(output_router_logits=True), args=arguments, train_dataset=same)  # type: ignore[no-untyped-call]
        trainer.train()
        losses.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize(
    "where",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": "all-linear"},
        {"target_modules": [], "target_parameters": ["ffn.w_gate", "ffn.w_up", "ffn.w_down"]},
    ],
    ids=["attention", "all-linear", "experts"],
)
def test_lora_learns_and_merges_into_the_same_function(where: dict[str, Any], tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    built = model()
    frozen = {name: parameter.detach().clone() for name, parameter in built.named_parameters()}
    adapted = get_peft_model(built, LoraConfig(r=4, lora_alpha=16, task_type="CAUSAL_LM", **where))
    trainable = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    assert 0 < sum(p.numel() for p in trainable) < sum(p.numel() for p in frozen.values()) / 2
    optimizer = torch.optim.AdamW(trainable, lr=2e-2)
    before = loss_of(adapted)
    batch = {name: torch.stack([row[name] for row in rows()]) for name in rows(1)[0]}
    for _ in range(15):
        adapted(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = loss_of(adapted.eval())
    assert after < 0.9 * before
    adapted.save_pretrained(tmp_path)
    fresh = model()
    with torch.no_grad():
        for name, parameter in fresh.named_parameters():
            parameter.copy_(frozen[name])
    assert loss_of(PeftModel.from_pretrained(fresh, tmp_path).eval()) == pytest.approx(after, rel=1e-4)
    merged = adapted.merge_and_unload()
    assert type(merged) is HMoEForCausalLM
    assert loss_of(merged) == pytest.approx(after, rel=1e-4)
    changed = {
        name for name, parameter in merged.named_parameters() if not torch.equal(parameter, frozen[name])
    }
    assert changed
    assert all(("ffn.w_" in name) == ("target_parameters" in where) for name in changed)


def test_accelerate_trains_and_dispatches(tmp_path: Path) -> None:
    from accelerate import Accelerator, init_empty_weights, load_checkpoint_and_dispatch

    built = model()
    before = loss_of(built)
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), gradient_accumulation_steps=2)
    optimizer = torch.optim.AdamW(built.parameters(), lr=1e-2)
    prepared, optimizer, loader = accelerator.prepare(built, optimizer, DataLoader(rows(), batch_size=8))  # type: ignore[arg-type]
    for _ in range(4):
        for batch in loader:
            with accelerator.accumulate(prepared):
                accelerator.backward(prepared(**batch).loss)
                optimizer.step()
                optimizer.zero_grad()
    trained = accelerator.unwrap_model(prepared).eval()
    after = loss_of(trained)
    assert after < 0.8 * before
    trained.save_pretrained(tmp_path)
    with init_empty_weights():
        empty = HMoEForCausalLM(trained.config)
    layers = {f"model.layers.{i}": "disk" if i else "cpu" for i in range(2)}
    device_map = {"model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu", **layers}
    spread = load_checkpoint_and_dispatch(
        empty,
        str(tmp_path / "model.safetensors"),
        device_map=device_map,
        offload_folder=str(tmp_path / "offload"),
    )
    assert loss_of(spread.eval()) == pytest.approx(after, rel=1e-5)
