"""Every error a user can meet, as one tree; `exit_code` is what the command line returns.

HMoEError
├── ConfigError       2  a recipe, an option or an argument that cannot work
├── RunBusyError      2  another process is writing this run folder
├── DataError         3  text, tokens or tokenizer that cannot be used
├── CheckpointError   4  a checkpoint that cannot be written or trusted
├── NonFiniteError    5  NaN or infinity where a number is needed
├── DistributedError  6  processes that cannot work together
└── PeerError         *  what another process of the run ended with; that one says it

A message names arguments of functions as Python does, never flags. Those that it names are told by `argument`, and
the command line shows the flags of the verb that runs in their place (`hmoe.cli.flags`). An argument is written as
`name = value` or in backquotes; bare, if its name has an underscore or the message writes it in no other way:

    ConfigError(f"shard_size = {size}: must be a number", argument="shard_size")    # --shard-size 5: must be ...
    ConfigError(f"{folder}: is not empty; choose another `out`", argument="out")    # ...; choose another --out
    ConfigError("with_code has no effect with form = x", argument=("with_code", "form"))
"""

import unicodedata

_LONGEST, _LONGEST_END = 560, 190  # characters of a message, and of its end, which says what is allowed
_LONGEST_WORD = 150  # of a message that is too long
_BIDI = range(0x202A, 0x202F), range(0x2066, 0x206A)  # turn round what a terminal shows


def shorten_line(text: str) -> str:
    """Return a text as one line without control characters, the middle cut out where it is very long.

    Of a line that is too long first single words are cut, such as a value that somebody's file holds.
    """
    line = "".join(" " if _rewrites_lines(c) else c for c in text)
    if len(line) > _LONGEST:
        line = " ".join(_cut_middle(word, _LONGEST_WORD, _LONGEST_WORD // 2) for word in line.split(" "))
    return _cut_middle(line, _LONGEST, _LONGEST_END)


def _rewrites_lines(character: str) -> bool:
    # Other characters that are not printable, such as wide spaces and joiners, stand in names of files.
    is_control = not character.isprintable() and unicodedata.category(character) in ("Cc", "Zl", "Zp")
    return is_control or any(ord(character) in codes for codes in _BIDI)


def _cut_middle(text: str, longest: int, end: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - end - 3]}...{text[-end:]}"


class HMoEError(Exception):
    """Base of all hmoe errors; the message is one line for the user.

    Attributes:
        arguments: names of the function arguments that the message is about, as they stand in it.
    """

    exit_code = 1

    def __init__(self, *args: object, argument: str | tuple[str, ...] | None = None) -> None:
        self.args = args  # not by super().__init__: torch.compile cannot trace that call
        self.arguments = (argument,) if isinstance(argument, str) else argument or ()

    def __str__(self) -> str:
        """Return the message as one line of bounded length, whatever values of somebody's file it shows."""
        return shorten_line(super().__str__())


class ConfigError(HMoEError, ValueError):
    """A value that cannot work; names the key, the value, the allowed range and the nearest choice."""

    exit_code = 2


class RunBusyError(HMoEError):
    """The run folder is locked by another process."""

    exit_code = 2


class DataError(HMoEError):
    """Input text, token shards or a tokenizer that cannot be used; names file and line."""

    exit_code = 3


class CheckpointError(HMoEError):
    """A checkpoint that cannot be written, read or trusted; names file and reason."""

    exit_code = 4


class NonFiniteError(HMoEError, ArithmeticError):
    """NaN or infinity in router logits, loss or gradients."""

    exit_code = 5


class DistributedError(HMoEError):
    """Processes of a run that do not find each other, or one that no longer answers."""

    exit_code = 6


class PeerError(HMoEError):
    """An error of another process of the same run, which that process tells; the exit code is that error's."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def make_missing_extra_error(subject: str, extra: str) -> ConfigError:
    """Return the one-line error for a library of an extra that is not installed."""
    return ConfigError(f"{subject} need the {extra} extra: {make_install_command(extra)}")


def make_install_command(extra: str) -> str:
    """Return the command that adds an extra to this hmoe, from the place that it was installed from."""
    import shlex  # noqa: PLC0415 - slow, and most commands never fail

    place, editable = _find_install_place()
    wanted = f"hmoe[{extra}] @ {place}" if "://" in place else f"{place or 'hmoe'}[{extra}]"
    return f"pip install {'-e ' * editable}{shlex.quote(wanted)}"


def _find_install_place() -> tuple[str, bool]:
    """Return a folder, a file or a link that hmoe was installed from ("": a registry), and whether editable.

    pip records it in direct_url.json (PEP 610). Where hmoe runs without having been installed it is its checkout.
    """
    import json  # noqa: PLC0415
    from importlib.metadata import PackageNotFoundError, distribution  # noqa: PLC0415
    from pathlib import Path  # noqa: PLC0415
    from urllib.parse import urlsplit  # noqa: PLC0415
    from urllib.request import url2pathname  # noqa: PLC0415

    try:
        origin = json.loads(distribution("hmoe").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        checkout = Path(__file__).resolve().parents[2]  # above src/hmoe
        return (str(checkout), True) if (checkout / "pyproject.toml").is_file() else ("", False)
    url = origin.get("url", "")
    if urlsplit(url).scheme == "file":
        return url2pathname(urlsplit(url).path), bool(origin.get("dir_info", {}).get("editable"))
    revision = origin.get("vcs_info")
    return (f"{revision['vcs']}+{url}@{revision['commit_id']}" if revision else url), False
