"""The first checkpoint of a run that begins with the weights of another run of its sweep."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from hmoe.checkpoint.manifest import read_newest_state
from hmoe.config.run import RunConfig
from hmoe.data.batches import Batches
from hmoe.data.open import open_data
from hmoe.model.transformer import Transformer
from hmoe.runs.config_binding import load_recorded_config
from hmoe.runs.open_model import open_model
from hmoe.runs.run_folder import RunFolder
from hmoe.surgery.build_run import RunOptions, measure_widths
from hmoe.surgery.measure import record_ffn_inputs
from hmoe.surgery.upcycle import UnitChoice, upcycle_model
from hmoe.sweep.upcycled import check_upcycled_model
from hmoe.train.begin_run import begin_run

MEASURED_TOKENS = RunOptions.tokens  # as many as `hmoe upcycle` reads


def begin_upcycled(config: RunConfig, folder: RunFolder, source: Path) -> None:
    """Write step 0: the weights of the source, its layers or experts cut into the experts of the recipe.

    Experts that come from dense layers take contiguous hidden units, so that they differ. Those that come from experts
    keep their most important ones, and their output is scaled by least squares.

    Args:
        config: recipe of the run.
        folder: locked, without a checkpoint.
        source: run folder whose weights are taken.
    """
    opened = open_model(source, print)
    model = opened.model
    check_upcycled_model(config.model, model.config)
    if config.model != model.config:
        has_experts = bool(model.config.moe_layers)
        choice = UnitChoice("importance" if has_experts else "windows", config.seed)
        inputs = _record_inputs(model, config) if has_experts else None
        model = upcycle_model(model, config.model, choice, inputs)[0]
    begin_run(folder, config, model, opened.tokenizer, opened.begin)


def measure_recipe(config: RunConfig, run: Path, source: Path) -> RunConfig:
    """Return a recipe whose experts share its total width by the measured importance of the source's units.

    A run that has begun keeps the widths that it has: sums of floats could give others with more threads.
    """
    moe, state = config.model.moe, read_newest_state(run)
    begun = None if state is None else load_recorded_config(state)
    assert moe is not None
    if begun is not None and begun.model.moe is not None:
        widths = begun.model.moe.expert_widths
    else:
        model = open_model(source, print).model
        check_upcycled_model(config.model, model.config, measured_widths=True)
        widths = measure_widths(model, _record_inputs(model, config), sum(moe.expert_widths))
    return config.model_copy(update={"model": replace(config.model, moe=replace(moe, widths=widths))})


def _record_inputs(model: Transformer, config: RunConfig) -> list[torch.Tensor]:
    return record_ffn_inputs(model.eval(), _read_sequences(config))


def _read_sequences(config: RunConfig) -> Iterator[torch.Tensor]:
    """Yield the first training sequences of a recipe as tokens_BL with B = 1, so many as are measured on."""
    length = config.data.sequence_length
    batches = Batches(
        open_data(config),
        config.data.model_copy(update={"batch_tokens": length, "micro_batches": 1}),
        config.seed,
    )
    for step in range(max(1, MEASURED_TOKENS // length)):
        yield torch.as_tensor(batches[step][0])
