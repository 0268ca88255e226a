"""Open the tokens that a recipe names: the embedded corpus, or a folder of prepared data."""

from pathlib import Path

from hmoe.config.run import RunConfig
from hmoe.data.corpus import open_corpus
from hmoe.data.shards import Index, open_index
from hmoe.errors import DataError


def open_data(config: RunConfig, fingerprint: str | None = None, tokenizer: str | None = None) -> Index:
    """Open the data that `data.path` of a recipe names, and check that it is the run's.

    Args:
        config: configuration of the run.
        fingerprint: fingerprint of the data that the run was trained on; None where it was not trained yet.
        tokenizer: fingerprint of the run's tokenizer, checked without `fingerprint`; None for a new run.

    Raises:
        DataError: if there is no data, or other data than that.
    """
    if config.data.path == "corpus":
        index = open_corpus(config.corpus_tokenizer)
    else:
        folder = Path(config.data.path).absolute()  # an error then says where it was looked for
        if not (folder / "index.json").is_file():
            raise DataError(
                f"data.path = {folder}: no index.json there; make a data folder with `hmoe data prepare`, "
                "or give data.path=NEW if the data moved"
            )
        index = open_index(folder)
    if fingerprint is None and tokenizer not in (None, index.tokenizer_fingerprint):
        raise DataError(
            f"{index.folder}: was not prepared with the tokenizer of the model; "
            "prepare it again with tokenizer = the run folder"
        )
    if fingerprint not in (None, index.fingerprint):
        raise DataError(
            f"data.path = {index.folder}: the data changed since the run was saved, or is other data: its fingerprint "
            f"is {index.fingerprint[:12]}, the checkpoint's {fingerprint[:12] if fingerprint else None}"
        )
    return index
