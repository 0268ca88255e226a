"""Change a tokenizer's definition so that no text gives its control tokens, which would end a document."""

import json
import secrets
from collections.abc import Iterable
from typing import Any


def hide_control_tokens(content: bytes, names: Iterable[str]) -> bytes:
    """Return the tokenizer.json with its control tokens under names that no text holds, at the same ids.

    A tokenizer's model finds them in a text because they stand in its vocabulary, whatever the flags of added
    tokens are. Under other names the same characters become ordinary pieces, or the unknown token.
    """
    salt = secrets.token_hex(8)  # a name that nobody can guess; no id depends on it
    hidden = {name: f"\ue000{salt}.{index}\ue001" for index, name in enumerate(names)}
    tree = json.loads(content)
    for token in tree["added_tokens"]:
        if token["content"] in hidden:
            token |= {"content": hidden[token["content"]], "special": True, "normalized": False}
    _hide_in_model(tree["model"], hidden)
    return json.dumps(tree | {"post_processor": None, "truncation": None, "padding": None}).encode()


def _hide_in_model(model: dict[str, Any], hidden: dict[str, str]) -> None:
    vocab = model["vocab"]
    if isinstance(vocab, list):  # Unigram's pieces have scores, and their places are their ids
        model["vocab"] = [[hidden.get(piece, piece), score] for piece, score in vocab]
        return
    model["vocab"] = {hidden.get(piece, piece): token for piece, token in vocab.items()}
    if model.get("unk_token") in hidden:
        model["unk_token"] = None
    if "merges" in model:
        prefix = len(model.get("continuing_subword_prefix") or "")
        pairs = [merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"]]
        # A merge that makes a control token, or uses one, names pieces that are no longer there.
        model["merges"] = [
            [left, right] for left, right in pairs if not hidden.keys() & {left, right, left + right[prefix:]}
        ]
