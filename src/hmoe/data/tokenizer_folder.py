"""Keep a tokenizer in a folder, so that `hmoe.data.tokenizer.load_tokenizer` gives the same one and its separator."""

import json
from pathlib import Path

from tokenizers import Tokenizer as HuggingFace

from hmoe.data.shards import Index
from hmoe.data.tokenizer import Tokenizer, load_tokenizer
from hmoe.errors import DataError
from hmoe.storage import hash_file, read_json, write_atomic


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Write the tokenizer's file to a folder, and its separator's name where the file alone gives another."""
    if not tokenizer.file_name:
        return
    write_atomic(folder / tokenizer.file_name, tokenizer.content)
    try:
        separator = load_tokenizer(folder).separator
    except DataError:
        separator = -1
    if separator == tokenizer.separator:
        return
    file = folder / "tokenizer_config.json"
    try:
        settings = read_json(file)
    except (OSError, ValueError):
        settings = {}
    settings = settings if isinstance(settings, dict) else {}
    settings["eos_token"] = _token_text(tokenizer.content, tokenizer.separator)
    write_atomic(file, (json.dumps(settings, indent=1) + "\n").encode())


def load_data_tokenizer(index: Index) -> Tokenizer:
    """Load the tokenizer of a data folder, with the separator that its shards have.

    Raises:
        DataError: if it is not the one that made the shards.
    """
    file = index.folder / "tokenizer.json"
    is_unchanged = file.is_file() and hash_file(file) == index.tokenizer_fingerprint
    # The separator is found by its id, because earlier versions did not keep a name that came from elsewhere.
    tokenizer = load_tokenizer(
        index.folder, _token_text(file.read_bytes(), index.separator) if is_unchanged else None
    )
    if tokenizer.fingerprint != index.tokenizer_fingerprint:
        raise DataError(
            f"{index.folder / tokenizer.file_name}: is not the tokenizer that made the shards; "
            f"delete {index.folder} and prepare again"
        )
    return tokenizer


def _token_text(content: bytes, token: int) -> str:
    return str(HuggingFace.from_str(content.decode()).id_to_token(token))
