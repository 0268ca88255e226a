"""`hmoe import`: a run at step 0 from a Hugging Face folder."""

from pathlib import Path
from typing import Annotated

import typer

from hmoe.cli.arguments import AsJson, complete_recipe
from hmoe.cli.next_steps import list_new_run_steps, print_report
from hmoe.cli.output import print_note
from hmoe.units import format_count

_Source = Annotated[
    Path,
    typer.Argument(
        metavar="DIR",
        help="Hugging Face folder: Mixtral, Qwen3-MoE, OLMoE, LLaMA, Mistral, Qwen3, or one made by "
        "`hmoe export`.",
    ),
]
_Run = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="Run folder to make, at step 0; then overrides: a.b=c or --a.b c."),
]
_Recipe = Annotated[
    str,
    typer.Option(
        help="Preset or YAML file with the keys under data, optim and train.", autocompletion=complete_recipe
    ),
]


def import_to_run(
    context: typer.Context,
    source: _Source,
    run: _Run,
    recipe: _Recipe = "quickstart",
    as_json: AsJson = False,
) -> None:
    """Make a run at step 0 from a Hugging Face folder.

    Ready to evaluate, serve, or train further.
    """
    from hmoe.runs.import_hf import import_hf_model, read_side_files
    from hmoe.storage import check_unused_folder

    check_unused_folder(run)
    config, model, tokenizer = import_hf_model(source, recipe, context.args)
    from hmoe.runs.run_folder import RunFolder
    from hmoe.train.begin_run import begin_run

    with RunFolder(run, config) as folder:
        begin_run(folder, config, model, tokenizer, tokenizer.begin, read_side_files(source, tokenizer))
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    record = {
        "source": str(source),
        "run": str(run),
        "step": 0,
        "parameters": num_parameters,
        "vocabulary": config.model.vocab,
        "tokenizer_vocabulary": tokenizer.vocab_size,
        "data_path": config.data.path,
    }
    most, length = config.model.context, config.data.sequence_length
    if most is not None and length > most:
        print_note(
            f"data.sequence_length = {length}: longer than the {most} tokens that the model was made to read; "
            f"`hmoe train` with data.sequence_length={most} stays within them"
        )
    steps = list_new_run_steps(run, config, tokenizer.fingerprint, tokenizer.begin)
    print_report(record, [f"{run}: {format_count(num_parameters)} parameters at step 0"], steps, as_json)
