"""Definitions of tokenizers that cannot write their control tokens: what a document says never ends it."""

import json
import secrets
from collections.abc import Iterable
from typing import Any

_USER_DEFINED, _CONTROL = 4, 3  # types of SentencePiece's pieces


def hide_control_tokens(content: bytes, names: Iterable[str]) -> bytes:
    """The tokenizer.json with its control tokens under names that no text holds, at the same ids.

    A model finds them in a text because they stand in its vocabulary, whatever the flags of added tokens are. Under other
    names the same characters become ordinary pieces, or the unknown token.
    """
    salt = secrets.token_hex(8)  # a name that nobody can guess; no id depends on it
    hidden = {name: f"\ue000{salt}.{number}\ue001" for number, name in enumerate(names)}
    tree = json.loads(content)
    for token in tree["added_tokens"]:
        if token["content"] in hidden:
            token |= {"content": hidden[token["content"]], "special": True, "normalized": False}
    _hide_in_model(tree["model"], hidden)
    return json.dumps(tree | {"post_processor": None, "truncation": None, "padding": None}).encode()


def _hide_in_model(model: dict[str, Any], hidden: dict[str, str]) -> None:
    vocab = model["vocab"]
    if isinstance(vocab, list):
        model["vocab"] = [[hidden.get(piece, piece), score] for piece, score in vocab]
        return
    model["vocab"] = {hidden.get(piece, piece): number for piece, number in vocab.items()}
    if model.get("unk_token") in hidden:
        model["unk_token"] = None
    if "merges" in model:
        prefix = len(model.get("continuing_subword_prefix") or "")
        pairs = [merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"]]
        model["merges"] = [[a, b] for a, b in pairs if not hidden.keys() & {a, b, a + b[prefix:]}]


def as_control_piece(content: bytes, piece: str) -> bytes | None:
    """The SentencePiece model with a user-defined piece as a control piece, which no text gives; None if it has no such piece.

    Of the protocol buffer only this byte is touched: (1: piece {1: text, 2: score, 3: type})*, other fields.
    """
    position = 0
    while position < len(content) and content[position] == 0x0A:
        size, begin = _varint(content, position + 1)
        position = begin + size
        entry = content[begin:position]
        name = piece.encode()
        if entry.startswith(bytes([0x0A, len(name)]) + name) and entry.endswith(bytes([0x18, _USER_DEFINED])):
            return content[: position - 1] + bytes([_CONTROL]) + content[position:]
    return None


def _varint(content: bytes, position: int) -> tuple[int, int]:
    """A number of the protocol buffer, and where the next field begins."""
    number = shift = 0
    while content[position] & 0x80:
        number |= (content[position] & 0x7F) << shift
        position, shift = position + 1, shift + 7
    return number | content[position] << shift, position + 1
