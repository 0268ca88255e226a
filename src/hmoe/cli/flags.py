"""Arguments that library errors name, shown as the flags of the verb that runs."""

import re
from collections.abc import Callable, Iterable
from typing import Any

from hmoe.cli.output import print_note
from hmoe.errors import HMoEError

_OTHER_NAMES = {  # verb -> what the library calls an argument -> what the verb calls it
    "upcycle": {"inputs": "text", "texts": "text"},
    "inspect": {"chosen": "token", "sample_tokens": "sample"},
}


def name_flags(message: str, arguments: Iterable[str], flags: dict[str, str]) -> str:
    """Return an error's message with flags in place of the arguments it names.

    An argument is marked by a value (`name = 5`) or by backquotes. A bare word is an argument if it has an
    underscore, or if the message marks that argument nowhere: `text` and `out` are also ordinary words.

    Args:
        message: as the library raised it.
        arguments: names that the message is about; those without a flag stay as they are.
        flags: flag of the running verb by the argument's name.
    """
    for argument in arguments:
        flag = flags.get(argument)
        if flag is None:
            continue
        # No part of a path, of a file's name or of a recipe key.
        word = rf"(?<![\w.\-/]){re.escape(argument)}(?![\w\-/]|\.\w)"
        marked = rf"`{re.escape(argument)}`|{word} =(?= )"
        for pattern in (f"{marked}|{word}",) if "_" in argument else (marked, word):
            message, count = re.subn(pattern, flag, message)
            if count:
                break
    return message


def explain_error(error: HMoEError, command: Any) -> str:
    """Return an error's message as the user of a verb should read it."""
    if "overrides" in error.arguments:
        # A word that is neither an option of the verb nor a key of a recipe may be meant as either one.
        return f"{error} (options: -h)"
    return name_flags(str(error), error.arguments, list_flags(command)) if error.arguments else str(error)


def list_flags(command: Any) -> dict[str, str]:
    """Return the longest flag of every option of a verb, by the names that the library has for it."""
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    flags = {option.name: max(option.opts, key=len) for option in options}
    others = _OTHER_NAMES.get(command.name, {})
    return flags | {name: flags[own] for name, own in others.items()}


def find_command(command: Any, arguments: list[str]) -> Any:
    """Return the verb that a command line runs: the innermost command that its first words name."""
    for word in arguments:
        commands = getattr(command, "commands", {})
        if word not in commands:
            break
        command = commands[word]
    return command


def print_note_with_flags(*arguments: str) -> Callable[[str], None]:
    """Return a function that prints a note of the library with flags in place of these arguments."""
    flags = {argument: f"--{argument.replace('_', '-')}" for argument in arguments}
    return lambda text: print_note(name_flags(text, arguments, flags))
