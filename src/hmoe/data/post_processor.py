"""What a tokenizer.json puts before and after every text: reading it, and writing it to say what a model was trained with."""

import json
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer as HuggingFace


def read_frame(tokenizer: HuggingFace, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids before and after a text, which must have at least one token of its own."""
    encoding = tokenizer.encode(text, add_special_tokens=True)
    own = [place for place, special in enumerate(encoding.special_tokens_mask) if not special]
    return tuple(encoding.ids[: own[0]]), tuple(encoding.ids[own[-1] + 1 :])


def write_frame(content: bytes, begin: Sequence[int]) -> bytes:
    """The tokenizer.json such that AutoTokenizer gives `begin` and a text's tokens: nothing else, neither cut nor padded."""
    tree = json.loads(content)
    name_of = HuggingFace.from_str(content.decode()).id_to_token
    kept = [part for part in _parts(tree.get("post_processor")) if part["type"] == "ByteLevel"]  # it moves offsets only
    if begin:
        kept.append(_template([(str(name_of(token)), token) for token in begin]))
    whole = {"type": "Sequence", "processors": kept} if len(kept) > 1 else next(iter(kept), None)
    tree |= {"post_processor": whole, "truncation": None, "padding": None}
    return (json.dumps(tree, ensure_ascii=False, indent=2) + "\n").encode()


def _parts(processor: dict[str, Any] | None) -> list[dict[str, Any]]:
    if processor is None:
        return []
    if processor["type"] != "Sequence":
        return [processor]
    return [part for inner in processor["processors"] for part in _parts(inner)]


def _template(tokens: list[tuple[str, int]]) -> dict[str, Any]:
    """`begin` before a text, and before each of two."""
    texts = [[{"Sequence": {"id": name, "type_id": number}}] for number, name in enumerate("AB")]
    before = [[{"SpecialToken": {"id": name, "type_id": number}} for name, _ in tokens] for number in range(2)]
    return {
        "type": "TemplateProcessing",
        "single": [*before[0], *texts[0]],
        "pair": [*before[0], *texts[0], *before[1], *texts[1]],
        "special_tokens": {name: {"id": name, "ids": [token], "tokens": [name]} for name, token in tokens},
    }
