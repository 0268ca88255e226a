"""`hmoe export`: a model as a Hugging Face folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hmoe.cli.arguments import AnyModel, AsJson, parse_precision
from hmoe.cli.next_steps import FILES, make_step, name_path, print_report
from hmoe.cli.output import print_note
from hmoe.errors import make_missing_extra_error
from hmoe.units import format_bytes, format_count

if TYPE_CHECKING:
    from hmoe.hub.export import ExportReport

_Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write; must not exist, or be empty.")]
_Form = Annotated[
    str,
    typer.Option(
        "--format",
        help="hmoe, or mixtral: a top-k model with experts padded to the widest, the same function, "
        "for software that knows no hmoe.",
    ),
]
_Precision = Annotated[str | None, typer.Option(help="float32 or bfloat16. Default: as stored.")]
_ShardSize = Annotated[str, typer.Option(help="Largest weight file.")]
_WithCode = Annotated[
    bool,
    typer.Option(
        "--with-code", help="Add files that load with trust_remote_code=True where hmoe is not installed."
    ),
]


def export_to_folder(
    model: AnyModel,
    folder: _Folder,
    form: _Form = "hmoe",
    precision: _Precision = None,
    shard_size: _ShardSize = "5GB",
    with_code: _WithCode = False,
    as_json: AsJson = False,
) -> None:
    """Write a model as a Hugging Face folder.

    For transformers, with or without hmoe.
    """
    dtype = parse_precision(precision) if precision else None
    try:
        from transformers.utils import logging

        from hmoe.hub.export import ExportOptions, export_opened_model
    except ImportError:
        raise make_missing_extra_error("Hugging Face folders", "hf") from None
    from hmoe.runs.open_model import open_model

    logging.disable_progress_bar()  # a file or two need none
    options = ExportOptions(form, dtype, shard_size, with_code)  # refused before a large model is read
    opened = open_model(model, print_note)
    report = export_opened_model(opened, model, folder, options)
    record = {"model": str(model), "folder": str(folder), "format": form, **report._asdict()}
    if opened.model.config.causal:
        step = make_step("generate", name_path(folder), "She was")
    else:
        step = make_step("eval", name_path(folder), "--text", "FILES", comment=FILES)
    print_report(record, _describe_report(folder, report), [step], as_json)


def _describe_report(folder: Path, report: "ExportReport") -> Iterator[str]:
    """Yield the lines that say to people what was written."""
    yield f"{folder}: {format_count(report.parameters)} parameters, {format_bytes(report.weight_bytes)} of weights"
    if report.padded_width is not None and (report.padding or 0) > 1:
        yield (
            f"experts of {', '.join(map(str, report.widths))} hidden units are padded with zeros to "
            f"{report.padded_width}: {report.padding:.2f} times the memory of the experts"
        )
    yield f"load: {report.load}"
