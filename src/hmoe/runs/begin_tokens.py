"""The tokens that every text of a run begins with, such as LLaMA's <s>: a fact that its checkpoints record."""

from pathlib import Path
from typing import Any

from hmoe.checkpoint.manifest import read_newest_state
from hmoe.data.tokenizer import Tokenizer


def read_recorded_begin(state: dict[str, Any], tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the tokens that texts begin with, as a checkpoint's state records them."""
    if "begin" in state:
        return tuple(state["begin"])
    # Earlier versions recorded none: what they imported began as its tokenizer says, what they trained began
    # with nothing.
    return tokenizer.begin if state["step"] == 0 else ()


def find_folder_begin(path: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the tokens that a folder's texts begin with: those of its newest state, else its tokenizer's."""
    state = read_newest_state(path)
    return tokenizer.begin if state is None else read_recorded_begin(state, tokenizer)
