"""The texts that `hmoe inspect` reads: files, questions of benchmarks, or what a run held out of its training."""

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from hmoe.cli.texts import open_held_out_data, read_texts
from hmoe.errors import ConfigError, DataError

if TYPE_CHECKING:
    from hmoe.analyze.inspection import InspectedText
    from hmoe.evaluate.tasks import TaskSelection
    from hmoe.runs.open_model import OpenedModel


def read_text_source(opened: "OpenedModel", paths: list[Path], text_field: str | None) -> "InspectedText":
    """Return the documents of files and folders."""
    from hmoe.analyze.documents import encode_documents
    from hmoe.analyze.inspection import InspectedText
    from hmoe.data.inputs import list_input_files

    files = [file.path for file in list_input_files([str(path) for path in paths], say=lambda line: None)]
    marks = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    documents = encode_documents(read_texts(paths, text_field), opened.tokenizer, opened.begin)
    return InspectedText(", ".join(map(str, paths)), documents, {"files": marks, "field": text_field})


def read_question_source(
    opened: "OpenedModel", selection: "TaskSelection", limit: int | None
) -> "InspectedText":
    """Return the questions of benchmark tasks with their right answers, each a document."""
    from hmoe.analyze.documents import encode_documents
    from hmoe.analyze.inspection import InspectedText
    from hmoe.analyze.questions import iterate_question_texts

    questions = iterate_question_texts(selection, limit)
    first = next(questions, None)
    if first is None:
        raise DataError(f"{', '.join(selection.names)}: no questions whose right answer is known")
    documents = encode_documents(chain([first], questions), opened.tokenizer, opened.begin)
    digests = [selection.digest(name) for name in selection.names]
    return InspectedText(
        f"questions of {', '.join(selection.names)}", documents, {"tasks": [selection.names, digests, limit]}
    )


def read_held_out_source(opened: "OpenedModel", run: Path) -> "InspectedText":
    """Return the documents that a run held out of its training, in the windows of its validation."""
    from hmoe.analyze.documents import read_split
    from hmoe.analyze.inspection import InspectedText
    from hmoe.checkpoint.manifest import read_newest_state

    if opened.run is None or opened.folder is None:
        raise ConfigError(f"{run}: a Hugging Face folder has no held-out documents; name a text with --text")
    index = open_held_out_data(opened, run)
    state = read_newest_state(opened.folder) or {}
    parts = read_split(index, "valid", state.get("packing") or index.packing)
    return InspectedText(
        "the run's held-out documents",
        parts,
        {"data": index.fingerprint, "split": "valid"},
        index.tokens_of("valid"),
    )
