"""The chat templates of a folder, as transformers keeps them.

chat_template.jinja                    the default
additional_chat_templates/NAME.jinja   others
tokenizer_config.json                  its field chat_template, where there is no such file: the
                                       default, or a list of {"name", "template"}
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from hmoe.errors import ConfigError
from hmoe.runs.hf_folder import read_json_object

_LARGEST_BYTES = 1 << 24  # of a template


def read_default_template(folder: Path) -> str | None:
    """Return the chat template of a folder, of several the one named default; None where there is none.

    Raises:
        ConfigError: if it cannot be read.
    """
    return read_chat_templates(folder).get("default")


def read_chat_templates(folder: Path) -> dict[str, str]:
    """Return the chat templates of a folder by name, as transformers finds them.

    Raises:
        ConfigError: if one cannot be read.
    """
    files = {file.stem: file for file in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    if (folder / "chat_template.jinja").is_file():
        files["default"] = folder / "chat_template.jinja"
    templates = {}
    for name, file in files.items():
        try:
            if file.stat().st_size > _LARGEST_BYTES:
                raise ConfigError(f"{file}: larger than {_LARGEST_BYTES} bytes")
            templates[name] = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: cannot be read: {error}") from None
    config = folder / "tokenizer_config.json"
    if templates or not config.is_file():
        return templates
    template = read_json_object(config).get("chat_template")
    named = [row for row in template if isinstance(row, dict)] if isinstance(template, list) else []
    rows = [(row.get("name"), row.get("template")) for row in named] or [("default", template)]
    return {name: text for name, text in rows if isinstance(name, str) and isinstance(text, str)}


def check_chat_templates(folder: Path, say: Callable[[str], None]) -> None:
    """Say so where a folder has chat templates and none of them is the default."""
    names = sorted(read_chat_templates(folder))
    if names and "default" not in names:
        say(
            f"{folder}: none of its chat templates is named default ({', '.join(names)}): "
            "chats are laid out as plain lines"
        )


def iterate_template_files(folder: Path | None, default: str | None) -> Iterator[tuple[str, str]]:
    """Yield (file name, content) of the default template and of a folder's others, as transformers has them.

    Raises:
        ConfigError: for a name that no file can have.
    """
    if default is not None:
        yield "chat_template.jinja", default
    for name, text in (read_chat_templates(folder) if folder is not None else {}).items():
        if not re.fullmatch(r"[\w][\w.-]*", name):
            raise ConfigError(
                f"{folder}: a chat template named {name!r}; must be letters, digits, '_', '-' and '.'"
            )
        if name != "default":
            yield f"additional_chat_templates/{name}.jinja", text
