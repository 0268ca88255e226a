"""A model of any folder becomes the config and the weights of a run at step 0.

A recipe says what its experts become.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from hmoe.config.run import RunConfig
from hmoe.errors import ConfigError
from hmoe.model.transformer import Transformer
from hmoe.runs.open_model import OpenedModel
from hmoe.specs.model import ModelSpec
from hmoe.surgery.measure import (
    choose_measured_widths,
    cut_measured_texts,
    measure_unit_importance,
    record_ffn_inputs,
)
from hmoe.surgery.skip import apply_skip_shares, check_can_skip, measure_skip_shares
from hmoe.surgery.upcycle import UnitChoice, upcycle_model
from hmoe.surgery.upcycle_recipe import build_upcycle_recipe


@dataclass(frozen=True)
class RunOptions:
    """What the new run is, and how it is measured.

    Attributes:
        recipe: preset or YAML file; its sections data, optim, train and model.moe count.
        overrides: of the recipe.
        choice: which hidden units a narrower expert takes, see `hmoe.surgery.upcycle.UnitChoice`.
        tokens: of the texts, on which units are measured.
        width_budget: hidden units of a layer's experts in all, shared by measured importance; None: the
            recipe's widths.
        skip: measure shares below which experts are skipped in evaluation.

    Raises:
        ConfigError: for an unknown choice.
    """

    recipe: str
    overrides: tuple[str, ...] = ()
    choice: str = "importance"
    tokens: int = 8192
    width_budget: int | None = None
    skip: bool = False

    def __post_init__(self) -> None:
        UnitChoice(self.choice)


class NewRun(NamedTuple):
    """A run at step 0: its config, its model and the relative error of each MoE layer (NaN: unmeasured)."""

    config: RunConfig
    model: Transformer
    errors: list[float]


def build_run(opened: OpenedModel, options: RunOptions, texts: Sequence[str]) -> NewRun:
    """Return a run whose experts are made from an opened model.

    Args:
        opened: the model to begin from.
        options: what the new run is.
        texts: to measure on; without them nothing is measured.

    Raises:
        ConfigError: if the new model cannot begin as the old one, or needs texts to be measured on.
    """
    inputs = None
    if texts:
        length, begin = opened.context_length, opened.begin
        inputs = record_ffn_inputs(
            opened.model, cut_measured_texts(opened.tokenizer, texts, length, options.tokens, begin)
        )
    widths = (
        None if options.width_budget is None else measure_widths(opened.model, inputs, options.width_budget)
    )
    config = build_upcycle_recipe(opened, options.recipe, options.overrides, widths)
    if options.skip:
        _check_skip(opened.model.config, config.model, inputs)
    model, errors = upcycle_model(opened.model, config.model, UnitChoice(options.choice, config.seed), inputs)
    if options.skip:
        assert inputs is not None  # checked
        model = apply_skip_shares(model, measure_skip_shares(model.eval(), inputs))
        config = config.model_copy(update={"model": model.config})
    return NewRun(config, model, errors)


def measure_widths(model: Transformer, inputs: Sequence[torch.Tensor] | None, budget: int) -> tuple[int, ...]:
    """Return widths of a model's experts by measured importance; multiples of 8 if the budget is one, for the kernels.

    Args:
        model: with experts.
        inputs: of `record_ffn_inputs`; None: there was no text.
        budget: hidden units of a layer's experts in all.

    Raises:
        ConfigError: for a model without experts, or without a text to measure them on.
    """
    layers = model.config.moe_layers
    if inputs is None or not layers:
        raise ConfigError(
            "width_budget: needs a model with experts, and a text to measure them on", argument="width_budget"
        )
    ffns: list[Any] = [model.blocks[layer].ffn for layer in layers]
    importances = [
        measure_unit_importance(ffn, inputs[layer]) for ffn, layer in zip(ffns, layers, strict=True)
    ]
    return choose_measured_widths(importances, budget, 8 if budget % 8 == 0 else 1)


def _check_skip(before: ModelSpec, after: ModelSpec, inputs: list[torch.Tensor] | None) -> None:
    """Raise ConfigError unless experts may be skipped and which ones are weak can be measured."""
    if inputs is None:
        raise ConfigError(
            "skip: which experts are weak is measured on a text; give `texts`", argument=("skip", "texts")
        )
    if before.moe_layers != after.moe_layers:
        raise ConfigError(
            "skip: the routers are new, so which experts they find weak says nothing; train first",
            argument="skip",
        )
    check_can_skip(after)
