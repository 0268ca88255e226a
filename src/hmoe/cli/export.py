"""Verbs between run folders and Hugging Face folders: `hmoe export`, `hmoe import`, `hmoe upcycle`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from hmoe.cli.app import OVERRIDES, AnyModel, app, precision_dtype, say
from hmoe.errors import missing_extra


@app.command("export")
def export(
    model: AnyModel,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write; must not exist, or be empty.")],
    form: Annotated[str, typer.Option("--format", help="hmoe, or mixtral: a top-k model with experts padded to the widest, "
                    "the same function, for software that knows no hmoe.")] = "hmoe",
    precision: Annotated[str | None, typer.Option(help="float32 or bfloat16. Default: as stored.")] = None,
    shard_size: Annotated[str, typer.Option(help="Largest weight file.")] = "5GB",
    with_code: Annotated[bool, typer.Option("--with-code", help="Add files that load with trust_remote_code=True where hmoe "
                         "is not installed.")] = False,
) -> None:  # fmt: skip
    """Write a model as a Hugging Face folder."""
    dtype = precision_dtype(precision) if precision else None
    try:
        from transformers.utils import logging

        from hmoe.hub.export import Export
        from hmoe.hub.export import export as write
    except ImportError:
        raise missing_extra("Hugging Face folders", "hf") from None
    from hmoe.runs.open import open_model

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    how = Export(form, dtype, shard_size, with_code)
    for line in write(open_model(model, say), model, folder, how):
        typer.echo(line)


@app.command("import", context_settings=OVERRIDES)
def import_(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(metavar="DIR", help="Hugging Face folder: Mixtral, Qwen3-MoE, OLMoE, LLaMA, Mistral, "
                      "Qwen3, or one made by `hmoe export`; then overrides: a.b=c or --a.b c.")],
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder to make, at step 0.")],
    recipe: Annotated[str, typer.Option(help="Preset or YAML file with the keys under data, optim and train.")] = "quickstart",
) -> None:  # fmt: skip
    """Make a run at step 0 from a Hugging Face folder, to be evaluated, served, or trained further."""
    from hmoe.runs.import_hf import adopt, beside
    from hmoe.storage import refuse_used

    refuse_used(run)
    config, model, tokenizer = adopt(source, recipe, context.args)
    from hmoe.train.begin import begin
    from hmoe.train.run_folder import RunFolder

    with RunFolder(run, config) as folder:
        begin(folder, config, model, tokenizer, tokenizer.begin, beside(source, tokenizer))
    count = sum(parameter.numel() for parameter in model.parameters())
    typer.echo(f"{run}: {count:,} parameters at step 0")
    typer.echo(f"prepare text: hmoe data prepare FILES --tokenizer {run} --out {config.data.path}")
    typer.echo(f"train: hmoe train {run}/config.yaml --run {run}")


@app.command("upcycle", context_settings=OVERRIDES)
def upcycle(  # noqa: PLR0913, PLR0917 - an option is an argument
    context: typer.Context,
    source: AnyModel,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder to make, at step 0.")],
    recipe: Annotated[str, typer.Option(help="Preset or YAML file; what it says under model.moe is what the model becomes, then "
                      "overrides: a.b=c or --a.b c.")],
    text: Annotated[list[Path] | None, typer.Option(help="Text, jsonl or parquet to measure on; repeatable. Default: the run's "
                    "validation split.")] = None,
    text_field: Annotated[str | None, typer.Option(help="Field of its records, or a template of several: "
                          "'{question}\\n{response}'.")] = None,
    choice: Annotated[str, typer.Option(help="Which hidden units a narrower expert takes: importance (measured on the text), "
                      "windows or random.")] = "importance",
    tokens: Annotated[int, typer.Option(min=1, max=2**24, help="Tokens of the text that units are measured on.")] = 8192,
    width_budget: Annotated[int | None, typer.Option(min=1, help="Hidden units of a layer's experts in all, shared among them "
                            "by measured importance; in place of the recipe's widths.")] = None,
    skip: Annotated[bool, typer.Option("--skip", help="In evaluation and generation leave out experts much weaker than a token's best "
                    "one: in each layer the weaker half of the last choices on the text.")] = False,
) -> None:  # fmt: skip
    """Make a run at step 0 whose experts are made from a dense model's layers, or from wider or more experts."""
    from hmoe.surgery.build_run import Options, make

    overrides = tuple(context.args)
    make(
        Options(source, run, recipe, overrides, tuple(text or ()), text_field, choice, tokens, width_budget, skip),
        say,
        typer.echo,
    )
