"""`hmoe data prepare`: text into token shards."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hmoe.cli.arguments import AsJson
from hmoe.cli.next_steps import list_steps_of_data, print_report
from hmoe.cli.output import print_note
from hmoe.cli.progress import ProgressBar
from hmoe.errors import ConfigError
from hmoe.units import format_bytes, format_count

if TYPE_CHECKING:
    from hmoe.data.prepare import PrepareProgress
    from hmoe.data.shards import Index


_Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT...",
        help="Files or folders, or domain=PATH: .txt, .jsonl, .ndjson, .json, .parquet, also .gz, .xz, .zst, .bz2.",
    ),
]
_Out = Annotated[Path, typer.Option(help="Folder for the shards; continued if it was begun.")]
_Tokenizer = Annotated[
    str, typer.Option(help="bytes, bpe:SIZE (trained on the input), or a tokenizer file or folder.")
]
_Separator = Annotated[
    str | None, typer.Option(help="Token after every document. Default: the tokenizer's end-of-text token.")
]
_TextField = Annotated[
    str | None,
    typer.Option(
        help="Field of jsonl and parquet records (doc.text: text below doc), or a template of "
        "several: '{question}\\n{response}'. Default: text, raw_content, content."
    ),
]
_Validation = Annotated[float, typer.Option(help="Share of documents held out, chosen by their hash.")]
_Weight = Annotated[
    list[str] | None, typer.Option(help="domain=NUMBER: sampling weight; repeatable. Default: by size.")
]
_MaxBad = Annotated[int, typer.Option(help="Unusable documents to skip before giving up.")]


def prepare_data_folder(
    inputs: _Inputs,
    out: _Out,
    tokenizer: _Tokenizer = "bpe:8192",
    separator: _Separator = None,
    text_field: _TextField = None,
    validation: _Validation = 0.01,
    weight: _Weight = None,
    max_bad: _MaxBad = 0,
    as_json: AsJson = False,
) -> None:
    """Turn text into token shards.

    A killed call is continued by the same command.
    """
    from hmoe.data.batches import describe_weights
    from hmoe.data.prepare import PrepareRequest, prepare_data

    begin, begin_notes = _find_begin(tokenizer, separator)
    request = PrepareRequest(
        inputs,
        tokenizer,
        text_field,
        validation,
        _parse_weights(weight),
        max_bad,
        separator=separator,
        begin=begin,
    )
    with ProgressBar() as bar:
        index = prepare_data(request, out, lambda progress: _show_progress(bar, progress), say=print_note)
    record = _make_record(out, index)
    print_report(record, [_describe_record(record)], list_steps_of_data(out, index, tokenizer), as_json)
    notes = [*begin_notes, index.losses.describe() if index.losses else ""]
    if not index.tokens_of("valid"):
        notes.append(
            "no document was held out, so training will not report validation loss; see --validation"
        )
    for note in (*notes, index.describe_split(), describe_weights(index)):
        if note:
            print_note(note)


def _make_record(out: Path, index: "Index") -> dict[str, Any]:
    """Return what the folder holds, by split, and what was left out."""
    splits = {split: index.of(split) for split in ("train", "valid")}
    sums = {
        name: {split: sum(getattr(shard, name) for shard in shards) for split, shards in splits.items()}
        for name in ("tokens", "documents", "text_bytes")
    }
    return {
        "out": str(out),
        **sums,
        "vocabulary": index.vocab_size,
        "domains": sorted({shard.domain for shard in index.shards}),
        "skipped_documents": index.skipped_documents,
        "empty_documents": index.empty_documents,
        "fingerprint": index.fingerprint,
    }


def _describe_record(record: dict[str, Any]) -> str:
    """Return the line that says the same to people."""
    train, valid = (format_count(record["tokens"][split]) for split in ("train", "valid"))
    num_empty = record["empty_documents"]
    empty = f", {num_empty:,} empty documents left out" if num_empty else ""
    return (
        f"{record['out']}: {train} training tokens, {valid} held out, vocabulary {record['vocabulary']:,}, "
        f"{record['skipped_documents']:,} documents skipped{empty}"
    )


def _show_progress(bar: ProgressBar, progress: "PrepareProgress") -> None:
    counts = [
        f"{progress.documents:,} documents",
        f"{format_count(progress.tokens)} tokens",
        format_bytes(progress.text_bytes),
    ]
    stage = counts if progress.tokens else ["reading"]
    done = max(progress.file - 1, 0)  # this one is not finished yet
    bar.update("files", done, progress.files, [f"file {progress.file} of {progress.files}", *stage])


def _find_begin(name: str, separator: str | None) -> tuple[tuple[int, ...] | None, list[str]]:
    """Return the tokens before every document where a file or folder names them, and notes about them."""
    from hmoe.config.run import parse_bpe_size
    from hmoe.data.tokenizer import load_tokenizer

    if name == "bytes" or parse_bpe_size(name) is not None:
        return None, []
    tokenizer = load_tokenizer(name, separator)
    texts = {token: text for text, token in tokenizer.specials.items()}
    begin = tokenizer.begin
    if Path(name).is_dir():
        from hmoe.runs.begin_tokens import find_folder_begin

        begin = find_folder_begin(Path(name), tokenizer)
    notes = []
    if begin:
        notes.append(
            f"every document begins with {' '.join(texts.get(token, str(token)) for token in begin)}, as {name} says"
        )
    if after := [texts.get(token, str(token)) for token in tokenizer.after if token != tokenizer.separator]:
        notes.append(
            f"{name} puts {' '.join(after)} after a text; documents end with the end-of-text token alone"
        )
    return begin, notes


def _parse_weights(items: list[str] | None) -> dict[str, float] | None:
    weights = {}
    for item in items or []:
        domain, equals, text = item.rpartition("=")
        if domain in weights:
            raise ConfigError(f"--weight {item}: {domain} is given twice")
        try:
            weights[domain] = float(text)
        except ValueError:
            equals = ""
        if not (domain and equals and 0 <= weights[domain] <= 1e12):
            raise ConfigError(f"--weight {item}: must be domain=NUMBER with a number from 0 to 1e12")
    return weights or None
