"""`hmoe finetune`: HyperMoE's fine-tuning recipes."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from hmoe.cli.arguments import AsJson
from hmoe.cli.flags import print_note_with_flags
from hmoe.cli.next_steps import NextStep, make_step, name_path, print_report
from hmoe.errors import make_missing_extra_error
from hmoe.units import format_count

_Task = Annotated[
    str,
    typer.Argument(
        help="cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte, wnli; superglue-boolq, -cb, -copa, "
        "-multirc, -record, -rte, -wic, -wsc.fixed; squad, cnn_dailymail; wikitext2 (GPT-2)."
    ),
]
_Model = Annotated[
    str,
    typer.Argument(
        help="Folder or hub name of a Switch Transformers model (paper: google/switch-base-8), or of"
        " a GPT-2 for wikitext2, whose MLPs are duplicated into 8 experts."
    ),
]
_Out = Annotated[
    Path,
    typer.Argument(metavar="DIR", help="Folder for model and results.json; must not exist, or be empty."),
]
_Method = Annotated[
    str,
    typer.Option(
        help="moe: as it is; share: one more expert, for all tokens, of as many parameters; hyper: HyperExperts."
    ),
]
_Data = Annotated[
    Path | None,
    typer.Option(
        help="Folder with files train and validation (.jsonl, .csv, .parquet, .arrow, .txt) in the "
        "task's own columns. Default: from the hub."
    ),
]
_Epochs = Annotated[int | None, typer.Option(help="Default: 10; wikitext2: 20.")]
_Batch = Annotated[int | None, typer.Option(help="Sequences per step. Default: 8; wikitext2: 4.")]
_Lr = Annotated[
    float | None, typer.Option(help="Peak learning rate. Default: 1e-5; squad, cnn_dailymail: 3e-5.")
]
_SourceLength = Annotated[
    int | None, typer.Option(help="Tokens read. Default: 256; squad: 384; others: 1024.")
]
_TrainExamples = Annotated[
    int | None, typer.Option(min=1, help="Of the training split, the first ones. Default: all.")
]
_EvalExamples = Annotated[
    int | None, typer.Option(help="Scored after each epoch. Default: all; cnn_dailymail: 1600.")
]
_Seed = Annotated[int | None, typer.Option(help="Default: 42.")]


def finetune_to_folder(
    task: _Task,
    model: _Model,
    out: _Out,
    method: _Method = "hyper",
    data: _Data = None,
    epochs: _Epochs = None,
    batch: _Batch = None,
    lr: _Lr = None,
    source_length: _SourceLength = None,
    train_examples: _TrainExamples = None,
    eval_examples: _EvalExamples = None,
    seed: _Seed = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune an MoE as the HyperMoE paper does.

    With HyperExperts or a baseline; then score it.
    """
    from hmoe.storage import check_unused_folder

    check_unused_folder(out)
    try:
        import accelerate  # noqa: F401 - transformers asks for it only when it trains
        from transformers.utils import logging

        from hmoe.adapt.finetune.fine_tune import FinetuneRequest, finetune_model
        from hmoe.adapt.finetune.tasks import change_task_settings, get_finetune_task
    except ImportError:
        raise make_missing_extra_error("fine-tuning recipes", "finetune") from None
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    recipe = get_finetune_task(task)
    settings = change_task_settings(
        recipe,
        epochs=epochs,
        batch=batch,
        lr=lr,
        source_length=source_length,
        eval_examples=eval_examples,
        seed=seed,
    )
    request = FinetuneRequest(recipe, model, method, data, settings, train_examples)
    result = finetune_model(request, out, print_note_with_flags("source_length"))
    options = {
        "data": data, "epochs": epochs, "batch": batch, "lr": lr, "source_length": source_length,
        "train_examples": train_examples, "eval_examples": eval_examples, "seed": seed,
    }  # fmt: skip
    steps = _list_baseline_steps(task, model, out, method, options)
    print_report({"out": str(out), **result}, _describe_result(out, result), steps, as_json)


def _describe_result(out: Path, result: dict[str, Any]) -> Iterator[str]:
    """Yield the lines that say to people what came out."""
    best = ", ".join(f"{name} {value:.2f}" for name, value in result["best"].items() if name != "epoch")
    yield (
        f"{result['task']} {result['method']}: {best} at epoch {result['best']['epoch']:g}, "
        f"{format_count(result['parameters'])} parameters"
    )
    yield f"{out}: the model of the last epoch, and results.json"


def _list_baseline_steps(
    task: str, model: str, out: Path, method: str, options: dict[str, Any]
) -> list[NextStep]:
    """Return what fine-tunes the model as it is, by the same settings, which HyperExperts are compared with."""
    baseline = out.with_name(f"{out.name}-moe")
    if method == "moe" or baseline.exists():
        return []
    given = {name.replace("_", "-"): str(value) for name, value in options.items() if value is not None}
    flags = [word for name, value in given.items() for word in (f"--{name}", value)]
    return [make_step("finetune", task, model, name_path(baseline), "--method", "moe", *flags)]
