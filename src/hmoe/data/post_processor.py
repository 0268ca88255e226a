"""Read what a tokenizer.json puts before and after every text, and write what a model was trained with."""

import json
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer as HuggingFace


def read_frame(tokenizer: HuggingFace, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that a tokenizer puts before and after `text`, which must have a token of its own."""
    encoding = tokenizer.encode(text, add_special_tokens=True)
    text_places = [place for place, is_special in enumerate(encoding.special_tokens_mask) if not is_special]
    return tuple(encoding.ids[: text_places[0]]), tuple(encoding.ids[text_places[-1] + 1 :])


def write_frame(content: bytes, begin: Sequence[int]) -> bytes:
    """Return the tokenizer.json such that AutoTokenizer gives `begin` and a text's tokens, all of them."""
    tree = json.loads(content)
    name_of = HuggingFace.from_str(content.decode()).id_to_token
    # ByteLevel stays, as it moves offsets only and adds no token.
    kept = [part for part in _flat_processors(tree.get("post_processor")) if part["type"] == "ByteLevel"]
    if begin:
        kept.append(_make_template([(str(name_of(token)), token) for token in begin]))
    processor = {"type": "Sequence", "processors": kept} if len(kept) > 1 else next(iter(kept), None)
    tree |= {"post_processor": processor, "truncation": None, "padding": None}
    return (json.dumps(tree, ensure_ascii=False, indent=2) + "\n").encode()


def _flat_processors(processor: dict[str, Any] | None) -> list[dict[str, Any]]:
    if processor is None:
        return []
    if processor["type"] != "Sequence":
        return [processor]
    return [part for inner in processor["processors"] for part in _flat_processors(inner)]


def _make_template(tokens: list[tuple[str, int]]) -> dict[str, Any]:
    """Return a post-processor that puts `tokens` before a text, and before each of two."""
    texts = [[{"Sequence": {"id": name, "type_id": side}}] for side, name in enumerate("AB")]
    before = [[{"SpecialToken": {"id": name, "type_id": side}} for name, _ in tokens] for side in range(2)]
    return {
        "type": "TemplateProcessing",
        "single": [*before[0], *texts[0]],
        "pair": [*before[0], *texts[0], *before[1], *texts[1]],
        "special_tokens": {name: {"id": name, "ids": [token], "tokens": [name]} for name, token in tokens},
    }
