"""What a run folder keeps next to its tokenizer, and whether it is what the run began with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hmoe.storage import sha256

MORE_TEMPLATES = "additional_chat_templates"  # transformers' folder of named ones
TOKENIZER_SIDE = "tokenizer_config.json"
SIDE_FILES = (
    TOKENIZER_SIDE,
    "chat_template.jinja",
    "generation_config.json",
)  # prompts and the ends of texts depend on them
Say = Callable[[str], None]


def side_digests(run: Path) -> dict[str, str]:
    """SHA-256 of what a run folder keeps beside its tokenizer."""
    more = sorted(str(path.relative_to(run)) for path in (run / MORE_TEMPLATES).glob("*.jinja"))
    return {name: sha256(run / name) for name in (*SIDE_FILES, *more) if (run / name).is_file()}


def check_side_files(run: Path, state: dict[str, Any], say: Say) -> None:
    """Say which files beside the tokenizer are no longer those that the run began with."""
    found = side_digests(run)
    for name, digest in state.get("side_files", {}).items():
        if found.get(name) != digest:
            change = "was changed since" if name in found else "is missing, but was kept when"
            say(f"{run / name}: {change} the run began; prompts or the ends of texts may differ")
