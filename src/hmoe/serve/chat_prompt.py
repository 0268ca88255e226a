"""From a conversation to the tokens that a model continues, for the server and the terminal alike."""

import inspect
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmoe.data.tokenizer import Tokenizer
from hmoe.errors import ConfigError, make_missing_extra_error
from hmoe.runs.hf_tokenizer import load_transformers_tokenizer

_NAMES = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant"}
# By these, transformers tells control tokens that a user typed from the template's own.
_RESERVED_CHARACTERS = "\U000f0000\U000f0001"

Content = str | list[dict[str, str]] | None


@dataclass(frozen=True)
class ChatTurn:
    """Holds one message: the role system, developer, user or assistant, and a text or OpenAI's text parts."""

    role: str
    content: Content
    name: str | None = None


def join_content(content: Content) -> str:
    """Return a content as one text."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content or ())


class ChatLayout:
    """Lays out turns by the model's Jinja template, or, if it has none, as plain lines.

    A template is rendered and its text encoded by transformers. Control tokens of the template become control
    tokens; the same characters typed by a user stay characters. The plain form is, after `begin`, `System:
    ...`, `User: ...`, `Assistant: ...` with empty lines between, ending in `Assistant:`.

    Attributes:
        stops: texts that begin the next turn and so end the answer.

    Raises:
        ConfigError: for a template that is not Jinja, or if transformers is not installed.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: str | None,
        begin: Sequence[int] = (),
        folder: Path | None = None,
    ) -> None:
        self._tokenizer, self._begin = tokenizer, list(begin)
        self._template_encoder: TemplateEncoder | None = None
        if template is not None:
            self._template_encoder = TemplateEncoder(
                template, load_transformers_tokenizer(tokenizer, begin, folder)
            )
        self.stops: tuple[str, ...] = ("\nUser:",) if template is None else ()

    def encode(self, turns: Sequence[ChatTurn]) -> list[int]:
        """Return token ids up to where the answer begins.

        Raises:
            ConfigError: if the template refuses the turns.
        """
        if self._template_encoder is not None:
            return self._template_encoder.encode(turns)
        lines = [f"{_NAMES[turn.role]}: {join_content(turn.content)}" for turn in turns]
        return self._begin + self._tokenizer.encode(["\n\n".join([*lines, "Assistant:"])])[0]


class TemplateEncoder:
    """Encodes turns by a chat template and its tokenizer, both as transformers has them."""

    def __init__(self, template: str, tokenizer: Any) -> None:
        self._template, self._tokenizer = template, tokenizer
        if "sanitize_control_tokens" not in inspect.signature(self._tokenizer.apply_chat_template).parameters:
            raise make_missing_extra_error("chat templates (a newer transformers)", "serve")
        self._tokenizer.chat_control_tokens = []  # none but the special tokens; others are words like any
        self._lock = threading.Lock()  # a fast tokenizer may not be used by two threads at a time
        self._reads_parts = self._try_parts()

    def encode(self, turns: Sequence[ChatTurn]) -> list[int]:
        """Return token ids up to where the answer begins; ConfigError if the template refuses the turns."""
        texts = [join_content(turn.content) for turn in turns]
        if any(character in text for text in texts for character in _RESERVED_CHARACTERS):
            raise ConfigError(
                "messages: hold U+F0000 or U+F0001, which chat templates cannot carry; leave them out"
            )
        messages = [self._message(turn) for turn in turns]
        try:
            return self._apply(messages)
        except Exception as error:  # whatever a template may do
            raise ConfigError(
                f"messages: the model's chat template refuses them: {str(error)[:200]}"
            ) from None

    def _message(self, turn: ChatTurn) -> dict[str, Any]:
        content = turn.content
        if content is not None and not isinstance(content, str) and not self._reads_parts:
            content = join_content(content)
        fields = {"role": turn.role, "content": content, "name": turn.name}
        return {key: value for key, value in fields.items() if value is not None}

    def _apply(self, messages: list[dict[str, Any]]) -> list[int]:
        with self._lock:
            ids: list[int] = self._tokenizer.apply_chat_template(
                messages, chat_template=self._template, add_generation_prompt=True, return_dict=False,
                sanitize_control_tokens=True,
            )  # fmt: skip
        return ids

    def _try_parts(self) -> bool:
        """Return whether the template writes the texts of a list of parts, not the list itself."""
        probe = [{"role": "user", "content": [{"type": "text", "text": "probe"}]}]
        try:
            text: str = self._tokenizer.apply_chat_template(
                probe, chat_template=self._template, tokenize=False
            )
        except ImportError:
            raise make_missing_extra_error("chat templates", "serve") from None
        except Exception as error:
            # Jinja's, by its name: this module must load without Jinja.
            if type(error).__name__ == "TemplateSyntaxError":
                raise ConfigError(f"chat template: not Jinja: {error}") from None
            return False  # the template is for texts only
        return "probe" in text and "'type'" not in text and '"type"' not in text
