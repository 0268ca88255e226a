"""`hmoe upcycle`: a run at step 0 whose experts are made from another model."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hmoe.cli.arguments import AnyModel, AsJson, complete_recipe
from hmoe.cli.next_steps import list_new_run_steps, print_report
from hmoe.cli.output import print_note
from hmoe.cli.texts import list_validation_texts, read_texts
from hmoe.errors import ConfigError
from hmoe.units import format_count

if TYPE_CHECKING:
    from hmoe.runs.open_model import OpenedModel
    from hmoe.surgery.build_run import NewRun

_LARGEST_LOSS_TOKENS = 65536  # of the text, on which the losses before and after are measured


_Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder to make, at step 0.")]
_Recipe = Annotated[
    str,
    typer.Option(
        help="Preset or YAML file; what it says under model.moe is what the model becomes, then "
        "overrides: a.b=c or --a.b c.",
        autocompletion=complete_recipe,
    ),
]
_Text = Annotated[
    list[Path] | None,
    typer.Option(
        help="Text, jsonl or parquet to measure on; repeatable. Default: the run's validation split."
    ),
]
_TextField = Annotated[
    str | None,
    typer.Option(help="Field of its records, or a template of several: '{question}\\n{response}'."),
]
_Choice = Annotated[
    str,
    typer.Option(
        help="Which hidden units a narrower expert takes: importance (measured on the text), windows or random."
    ),
]
_Tokens = Annotated[
    int, typer.Option(min=1, max=2**24, help="Tokens of the text that units are measured on.")
]
_WidthBudget = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Hidden units of a layer's experts in all, shared among them by measured importance; in"
        " place of the recipe's widths.",
    ),
]
_Skip = Annotated[
    bool,
    typer.Option(
        "--skip",
        help="In evaluation and generation leave out experts much weaker than a token's best one: in"
        " each layer the weaker half of the last choices on the text.",
    ),
]


def upcycle_to_run(
    context: typer.Context,
    source: AnyModel,
    run: _Run,
    recipe: _Recipe,
    text: _Text = None,
    text_field: _TextField = None,
    choice: _Choice = "importance",
    tokens: _Tokens = 8192,
    width_budget: _WidthBudget = None,
    skip: _Skip = False,
    as_json: AsJson = False,
) -> None:
    """Make a run whose experts come from another model.

    A dense one, or one of wider or more experts.
    """
    from hmoe.runs.import_hf import read_side_files
    from hmoe.runs.open_model import open_model
    from hmoe.runs.run_folder import RunFolder
    from hmoe.storage import check_unused_folder
    from hmoe.surgery.build_run import RunOptions, build_run
    from hmoe.train.begin_run import begin_run

    if text_field and not text:
        raise ConfigError("--text-field has no effect without --text; remove it or name a text")
    check_unused_folder(run)
    options = RunOptions(recipe, tuple(context.args), choice, tokens, width_budget, skip)
    opened = open_model(source, print_note)
    texts = list(_read_some_texts(source, opened, text or [], text_field, max(tokens, _LARGEST_LOSS_TOKENS)))
    new = build_run(opened, options, texts)
    with RunFolder(run, new.config) as folder:
        begin_run(
            folder,
            new.config,
            new.model,
            opened.tokenizer,
            opened.begin,
            read_side_files(source, opened.tokenizer),
        )
    record = _make_record(source, run, opened, new, texts)
    steps = list_new_run_steps(run, new.config, opened.tokenizer.fingerprint, opened.begin)
    print_report(record, _describe_record(record), steps, as_json)


def _read_some_texts(
    source: Path, opened: "OpenedModel", paths: list[Path], text_field: str | None, num_tokens: int
) -> Iterator[str]:
    """Yield texts of the files, or of the run's own validation split, until they have so many tokens."""
    from hmoe.data.long_text import encode_text

    if paths:
        texts = read_texts(paths, text_field)
    elif opened.run is not None:
        texts = list_validation_texts(opened, source)
    else:
        return
    tokens = 0
    for _, text in texts:
        yield text
        tokens += len(encode_text(opened.tokenizer, text))
        if tokens >= num_tokens:
            return


def _make_record(
    source: Path, run: Path, opened: "OpenedModel", new: "NewRun", texts: Sequence[str]
) -> dict[str, Any]:
    """Return what the new model is, and how near it is to the old one; None for what was not measured."""
    from hmoe.surgery.extras import list_lost_extras

    total, before = (sum(p.numel() for p in model.parameters()) for model in (new.model, opened.model))
    moe = new.model.config.moe
    assert moe is not None
    losses = _measure_losses(opened, new, texts) if texts else (None, None)
    return {
        "source": str(source),
        "run": str(run),
        "step": 0,
        "parameters": total,
        "parameters_before": before,
        "left_out": list(list_lost_extras(opened.model, new.model.config)),
        "widths": list(moe.expert_widths),
        "router": moe.router.title,
        "warning": moe.warning,
        "skip": None if moe.skip is None else list(moe.skip),
        "relative_errors": [None if not math.isfinite(error) else error for error in new.errors],
        "loss_before": losses[0],
        "loss_after": losses[1],
    }


def _describe_record(record: dict[str, Any]) -> Iterator[str]:
    """Yield the lines that say the same to people."""
    total, before = format_count(record["parameters"]), format_count(record["parameters_before"])
    yield f"{record['run']}: {total} parameters at step 0, of {before}"
    for part in record["left_out"]:
        yield f"left out: {part} of {Path(record['source']).resolve().name}; the errors and the loss below count it"
    yield f"experts: widths {', '.join(map(str, record['widths']))}; router {record['router']}"
    if record["warning"]:
        yield f"warning: {record['warning']}"
    if record["skip"]:
        shares = ", ".join(f"{share:.3f}" for share in record["skip"])
        yield (
            f"in evaluation experts are skipped whose score is below this share of the best one's, per layer: {shares}"
        )
    measured = [error for error in record["relative_errors"] if error is not None]
    if measured:
        yield f"relative error of layers: mean {sum(measured) / len(measured):.4f}, largest {max(measured):.4f}"
    if record["loss_before"] is None:
        yield "no text: neither losses nor errors were measured; give --text"
    else:
        yield (
            f"loss on the text: {record['loss_before']:.4f} nats per token before, {record['loss_after']:.4f} after"
        )


def _measure_losses(opened: "OpenedModel", new: "NewRun", texts: Sequence[str]) -> tuple[float, float]:
    """Return the loss on the texts before and after, in nats per token."""
    from hmoe.evaluate.perplexity import measure_perplexity

    before, after = (
        measure_perplexity(
            model, opened.tokenizer, texts, opened.context_length, begin=opened.begin
        ).nats_per_token
        for model in (opened.model, new.model)
    )
    return before, after
