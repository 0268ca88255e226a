"""What `hmoe upcycle` does: open, measure, make, report, write."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmoe.errors import ConfigError

Say = Callable[[str], None]
_LARGEST_LOSS_TOKENS = 65536  # of the text, on which the losses before and after are measured


@dataclass(frozen=True)
class Options:
    """Of the verb."""

    source: Path
    run: Path
    recipe: str
    overrides: tuple[str, ...]
    text: tuple[Path, ...]
    text_field: str | None
    choice: str
    tokens: int
    width_budget: int | None
    skip: bool


def make(options: Options, say: Say, echo: Say) -> None:
    """Write the run folder; say how near the new model is to the old one."""
    from hmoe.runs.import_hf import beside
    from hmoe.runs.open import open_model
    from hmoe.storage import refuse_used
    from hmoe.surgery.measure import batches, inputs_of
    from hmoe.surgery.skip import median_shares, with_shares
    from hmoe.surgery.upcycle import Choice, upcycle
    from hmoe.surgery.upcycle_recipe import recipe_of
    from hmoe.train.begin import begin
    from hmoe.train.run_folder import RunFolder

    refuse_used(options.run)
    Choice(options.choice)  # refused before anything is read
    opened = open_model(options.source, say)
    texts = list(_texts(options, opened))
    inputs = None
    if texts:
        inputs = inputs_of(
            opened.model, batches(opened.tokenizer, texts, opened.context_length, options.tokens, opened.begin)
        )
    widths = None if options.width_budget is None else _widths(options.width_budget, opened, inputs)
    config = recipe_of(opened, options.recipe, options.overrides, widths)
    if options.skip:
        _check_skip(opened.model.config, config.model, inputs)
    model, errors = upcycle(opened.model, config.model, Choice(options.choice, config.seed), inputs)
    if options.skip:
        assert inputs is not None  # checked
        model = with_shares(model, median_shares(model.eval(), inputs))
        config = config.model_copy(update={"model": model.config})
    with RunFolder(options.run, config) as folder:
        begin(folder, config, model, opened.tokenizer, opened.begin, beside(options.source, opened.tokenizer))
    _report(options, opened, model, errors, texts, echo)


def _widths(budget: int, opened: Any, inputs: Any) -> tuple[int, ...]:
    """By measured importance; multiples of 8 if the budget is one, for the kernels."""
    from hmoe.surgery.measure import importance, measured_widths

    layers = opened.model.config.moe_layers
    if inputs is None or not layers:
        raise ConfigError("--width-budget: needs a model with experts, and a text to measure them on")
    found = [importance(opened.model.blocks[i].ffn, inputs[i]) for i in layers]
    return measured_widths(found, budget, 8 if budget % 8 == 0 else 1)


def _check_skip(before: Any, after: Any, inputs: Any) -> None:
    from hmoe.surgery.skip import check

    if inputs is None:
        raise ConfigError("--skip: which experts are weak is measured on a text; give --text")
    if before.moe_layers != after.moe_layers:
        raise ConfigError("--skip: the routers are new, so which experts they find weak says nothing; train first")
    check(after)


def _texts(options: Options, opened: Any) -> Iterator[str]:
    """As many as are measured on."""
    from hmoe.cli.eval import documents, validation
    from hmoe.data.long_text import encode_text

    if options.text_field and not options.text:
        raise ConfigError("--text-field has no effect without --text; remove it or name a text")
    if options.text:
        found = documents(list(options.text), options.text_field)
    elif opened.run is not None:
        found = validation(opened, options.source)
    else:
        return
    tokens = 0
    for _, text in found:
        yield text
        tokens += len(encode_text(opened.tokenizer, text))
        if tokens >= max(options.tokens, _LARGEST_LOSS_TOKENS):
            return


def _report(options: Options, opened: Any, model: Any, errors: list[float], texts: list[str], echo: Say) -> None:
    from hmoe.evaluate.perplexity import perplexity
    from hmoe.surgery.extras import lost_parts

    total, before = (sum(p.numel() for p in one.parameters()) for one in (model, opened.model))
    echo(f"{options.run}: {total:,} parameters at step 0, of {before:,}")
    moe = model.config.moe
    for part in lost_parts(opened.model, model.config):
        echo(f"left out: {part} of {opened.name}; the errors and the loss below count it")
    echo(f"experts: widths {', '.join(map(str, moe.expert_widths))}; router {moe.router.title}")
    if moe.warning:
        echo(f"warning: {moe.warning}")
    if moe.skip:
        shares = ", ".join(f"{share:.3f}" for share in moe.skip)
        echo(
            f"in evaluation experts are skipped whose score is below this share of the best one's, per layer: {shares}"
        )
    known = [error for error in errors if not math.isnan(error)]
    if known:
        echo(f"relative error of layers: mean {sum(known) / len(known):.4f}, largest {max(known):.4f}")
    if texts:
        losses = [
            perplexity(one, opened.tokenizer, texts, opened.context_length, begin=opened.begin).nats_per_token
            for one in (opened.model, model)
        ]
        echo(f"loss on the text: {losses[0]:.4f} nats per token before, {losses[1]:.4f} after")
    else:
        echo("no text: neither losses nor errors were measured; give --text")
    echo(f"train: hmoe train {options.run}/config.yaml --run {options.run}")
