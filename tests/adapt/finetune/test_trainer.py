"""The losses of routers are part of the loss that is trained on."""

from pathlib import Path

import pytest
import torch
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerFast,
    SwitchTransformersForConditionalGeneration,
    TrainingArguments,
)

from hmoe.adapt.duplicate import compute_noisy_balance, duplicate_mlps, record_noisy_routers
from hmoe.adapt.finetune.trainer import BalancedTrainer, RouterLossCollator
from tests.adapt.test_duplicate import small


def test_the_loss_of_a_switch_has_its_routers_terms(switch: Path) -> None:
    model = SwitchTransformersForConditionalGeneration.from_pretrained(switch)
    fast = PreTrainedTokenizerFast.from_pretrained(switch)
    batch = RouterLossCollator(DataCollatorForSeq2Seq(fast, model))(
        [{"input_ids": [4, 5, 1], "labels": [6, 1]}]
    )
    output = model(**batch)
    auxiliary = output.encoder_aux_loss + output.decoder_aux_loss
    z_loss = output.encoder_z_loss + output.decoder_z_loss
    text = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), batch["labels"].flatten())
    expected = text + model.router_aux_loss_coef * auxiliary + model.router_z_loss_coef * z_loss
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert auxiliary > 0


def test_the_loss_of_duplicated_mlps_has_their_balance(tmp_path: Path) -> None:
    model = duplicate_mlps(small(), experts=4).train()
    inputs = {"input_ids": torch.randint(0, 30, (3, 9))}
    inputs["labels"] = inputs["input_ids"]
    trainer = BalancedTrainer(
        model=model, args=TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    )
    torch.manual_seed(0)
    loss = trainer.compute_loss(model, inputs)
    torch.manual_seed(0)
    with record_noisy_routers(model) as routers:
        text = model(**inputs).loss
    balance = sum(compute_noisy_balance(*routed).item() for routed in routers)
    assert balance > 0.01
    assert loss.item() == pytest.approx(text.item() + 1e-2 * balance, rel=1e-6)
