"""Definitions of tokenizers that cannot write their control tokens: what a document says never ends it."""

import json
import secrets
from collections.abc import Iterable
from typing import Any


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
