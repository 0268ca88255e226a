"""What a run folder keeps next to its tokenizer: chat templates, names of special tokens, ends of texts.

Prompts and the ends of texts depend on these files, so a checkpoint holds their hashes and a change is told.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hmoe.storage import hash_file

_MORE_TEMPLATES = "additional_chat_templates"  # transformers' folder of named ones
TOKENIZER_SIDE = "tokenizer_config.json"
_SIDE_FILES = (TOKENIZER_SIDE, "chat_template.jinja", "generation_config.json")


def hash_side_files(run: Path) -> dict[str, str]:
    """Return the SHA-256 of each side file of a run folder, by its name within the folder."""
    more = sorted(str(path.relative_to(run)) for path in (run / _MORE_TEMPLATES).glob("*.jinja"))
    return {name: hash_file(run / name) for name in (*_SIDE_FILES, *more) if (run / name).is_file()}


def check_side_files(run: Path, state: dict[str, Any], say: Callable[[str], None]) -> None:
    """Say which side files are no longer those that the run began with."""
    digests = hash_side_files(run)
    for name, digest in state.get("side_files", {}).items():
        if digests.get(name) != digest:
            change = "was changed since" if name in digests else "is missing, but was kept when"
            say(f"{run / name}: {change} the run began; prompts or the ends of texts may differ")
