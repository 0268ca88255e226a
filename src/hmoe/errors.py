"""Every error a user can meet, as one tree; `exit_code` is what the command line returns.

HMoEError
├── ConfigError       2  a recipe, an option or an argument that cannot work
├── RunBusyError      2  another process is writing this run folder
├── DataError         3  text, tokens or tokenizer that cannot be used
├── CheckpointError   4  a checkpoint that cannot be written or trusted
└── NonFiniteError    5  NaN or infinity where a number is needed

A message names arguments of functions as Python does, never flags. Those that it names are told by `argument`, and
the command line shows the flags of the verb that runs in their place (`hmoe.cli.flags`). An argument is written as
`name = value` or in backquotes; bare, if its name has an underscore or the message writes it in no other way:

    ConfigError(f"shard_size = {size}: must be a number", argument="shard_size")    # --shard-size 5: must be ...
    ConfigError(f"{folder}: is not empty; choose another `out`", argument="out")    # ...; choose another --out
    ConfigError("with_code has no effect with form = x", argument=("with_code", "form"))
"""


class HMoEError(Exception):
    """Base of all hmoe errors; the message is one line for the user.

    Attributes:
        arguments: names of the function arguments that the message is about, as they stand in it.
    """

    exit_code = 1

    def __init__(self, *args: object, argument: str | tuple[str, ...] | None = None) -> None:
        self.args = args  # not by super().__init__: torch.compile cannot trace that call
        self.arguments = (argument,) if isinstance(argument, str) else argument or ()


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


def make_missing_extra_error(subject: str, extra: str) -> ConfigError:
    """Return the one-line error for a library of an extra that is not installed."""
    return ConfigError(f"{subject} need the {extra} extra: pip install 'hmoe[{extra}]'")
