"""The tokens that every text of a run begins with, such as LLaMA's <s>: one fact, recorded in its checkpoints."""

from pathlib import Path
from typing import Any

from hmoe.checkpoint.manifest import newest_state
from hmoe.data.tokenizer import Tokenizer


def run_begin(state: dict[str, Any], tokenizer: Tokenizer) -> tuple[int, ...]:
    """The recorded tokens of a checkpoint's state.

    Earlier versions recorded none: what they imported began as its tokenizer says, what they trained began with nothing.
    """
    if "begin" in state:
        return tuple(state["begin"])
    return tokenizer.begin if state["step"] == 0 else ()


def begin_of_folder(path: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Of a run folder's newest checkpoint whose state verifies; elsewhere the tokenizer's own."""
    state = newest_state(path)
    return tokenizer.begin if state is None else run_begin(state, tokenizer)
