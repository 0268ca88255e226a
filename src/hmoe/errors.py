"""Every error a user can meet, as one tree; `exit_code` is what the command line returns.

HMoEError
├── ConfigError       2  a recipe, an option or an argument that cannot work
├── RunBusyError      2  another process is writing this run folder
├── DataError         3  text, tokens or tokenizer that cannot be used
├── CheckpointError   4  a checkpoint that cannot be written or trusted
└── NonFiniteError    5  NaN or infinity where a number is needed
"""


class HMoEError(Exception):
    """Base of all hmoe errors; the message is one line for the user."""

    exit_code = 1


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


def missing_extra(what: str, extra: str) -> ConfigError:
    """The one-line error where a library of an extra is not installed."""
    return ConfigError(f"{what} need the {extra} extra: pip install 'hmoe[{extra}]'")
