"""A recipe as YAML -> its sections as plain values, before they are checked.

What YAML would lose or change is refused.
"""

import copy
import functools
from pathlib import Path
from typing import Any

import yaml

from hmoe.errors import ConfigError
from hmoe.storage import describe_encoding


def read_tree(path: Path) -> dict[str, Any]:
    """Read the sections of a YAML file.

    Raises:
        ConfigError: if it is no recipe, with what converts another encoding.
    """
    try:
        if path.stat().st_size > 1 << 20:
            raise ConfigError(f"{path}: larger than 1 MiB, not a recipe")
        content = path.read_bytes()
        if (encoding := describe_encoding(content)) is not None:
            raise ConfigError(
                f"{path}: is {encoding}, a recipe must be UTF-8; convert it: iconv -f {encoding} -t UTF-8"
            )
        return parse_tree(content.decode(), str(path))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}:{line}: invalid UTF-8: byte {content[error.start]:#04x}; "
            "convert other encodings, such as Latin-1: iconv -f LATIN1 -t UTF-8"
        ) from None
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ConfigError(f"{path}: cannot be read: {reason}") from None


class NamesLoader(yaml.SafeLoader):
    """Refuses a key that is written twice, of which YAML would silently take the last.

    Keys are names, as they are written: `null` is a kind of expert, and 2019 or `no` may be a domain.
    """

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Read a mapping whose keys are the names that were written, each once."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.YAMLError(f"key {twice!r} is written twice")
        mapping = super().construct_mapping(node, deep)
        written = {
            self.construct_object(key): key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)
        }
        return {"null" if key is None else written.get(key, key): value for key, value in mapping.items()}


@functools.lru_cache(64)  # a page of many runs reads each recipe several times
def _load_yaml(text: str) -> Any:
    return yaml.load(text, NamesLoader)


def parse_tree(text: str, where: str) -> dict[str, Any]:
    """Read the sections of a text; `where` names it in errors."""
    try:
        tree = copy.deepcopy(_load_yaml(text))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{where}: not YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(tree, dict) or not all(isinstance(key, str) and not key[:1].isdigit() for key in tree):
        raise ConfigError(f"{where}: must be a mapping with the sections seed, model, data, optim, train")
    return tree
