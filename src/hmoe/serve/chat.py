"""A conversation -> the tokens that a model continues."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn, Protocol

from hmoe.errors import ConfigError, missing_extra

_NAMES = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant"}
_BEGINNINGS = ("<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>")


@dataclass(frozen=True)
class Turn:
    """One message; roles are system, developer, user and assistant."""

    role: str
    content: str
    name: str | None = None


class Vocabulary(Protocol):
    """What a conversation needs of a tokenizer."""

    separator: int
    specials: dict[str, int]

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text."""
        ...


class Conversation:
    """Lays out turns by the model's Jinja template, or, if it has none, as plain lines.

    The plain form is, after `begin`, `System: ...`, `User: ...`, `Assistant: ...` with empty lines between, ending in `Assistant:`.
    Control tokens of the template become control tokens; the same characters typed by a user stay characters.

    Attributes:
        stops: texts that begin the next turn and so end the answer.

    Raises:
        ConfigError: for a template that is not Jinja, or if Jinja is not installed.
    """

    def __init__(self, tokenizer: Vocabulary, template: str | None, begin: Sequence[int] = ()) -> None:
        self._tokenizer, self._begin = tokenizer, list(begin)
        self._template = None if template is None else _compile(template)
        self.stops: tuple[str, ...] = ("\nUser:",) if template is None else ()
        texts = {token: text for text, token in tokenizer.specials.items()}
        self._variables = {
            "bos_token": next((text for text in _BEGINNINGS if text in tokenizer.specials), ""),
            "eos_token": texts.get(tokenizer.separator, ""),
        }

    def encode(self, turns: Sequence[Turn]) -> list[int]:
        """Token ids up to where the answer begins.

        Raises:
            ConfigError: if the template refuses the turns.
        """
        if self._template is None:
            lines = [f"{_NAMES[turn.role]}: {turn.content}" for turn in turns]
            return self._begin + self._tokenizer.encode(["\n\n".join([*lines, "Assistant:"])])[0]
        # a control token in a user's text is a word nobody can guess until the template's own have been found
        marks = {text: f"\ue000{secrets.token_hex(8)}\ue001" for text in self._tokenizer.specials}
        messages = [_message(turn, marks) for turn in turns]
        return self._split(self._render(messages), marks)

    def _render(self, messages: list[dict[str, str]]) -> str:
        assert self._template is not None
        try:
            text: str = self._template.render(messages=messages, add_generation_prompt=True, **self._variables)
        except Exception as error:  # whatever a template may do
            raise ConfigError(f"messages: the model's chat template refuses them: {str(error)[:200]}") from None
        return text

    def _split(self, text: str, marks: dict[str, str]) -> list[int]:
        pieces: list[str | int] = [text]
        for special in sorted(marks, key=len, reverse=True):
            pieces = [part for piece in pieces for part in _around(piece, special, self._tokenizer.specials[special])]
        for special, mark in marks.items():
            pieces = [piece.replace(mark, special) if isinstance(piece, str) else piece for piece in pieces]
        texts = iter(self._tokenizer.encode([piece for piece in pieces if isinstance(piece, str)]))
        return [token for piece in pieces for token in (next(texts) if isinstance(piece, str) else [piece])]


def _message(turn: Turn, marks: dict[str, str]) -> dict[str, str]:
    message = {"role": turn.role, "content": turn.content} | ({"name": turn.name} if turn.name else {})
    for special in sorted(marks, key=len, reverse=True):
        message = {key: value.replace(special, marks[special]) for key, value in message.items()}
    return message


def _around(piece: str | int, special: str, token: int) -> list[str | int]:
    """A text cut at a control token."""
    if not isinstance(piece, str):
        return [piece]
    cut: list[str | int] = []
    for text in piece.split(special):
        cut += [token, text]
    return [part for part in cut[1:] if part != ""]


def _compile(template: str) -> Any:
    try:
        from jinja2 import TemplateError  # noqa: PLC0415 - optional extra
        from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415
    except ImportError:
        raise missing_extra("chat templates", "serve") from None

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(template)
    except TemplateError as error:
        raise ConfigError(f"chat template: not Jinja: {error}") from None
