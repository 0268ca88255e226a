"""A conversation in a terminal, or of lines piped in, over the engine."""

import queue
from collections.abc import Callable, Iterator
from dataclasses import replace

from hmoe.errors import ConfigError, HMoEError
from hmoe.serve.chat_prompt import Conversation, Turn
from hmoe.serve.engine.engine import Engine
from hmoe.serve.engine.types import Ask, Event

_SECONDS = 86400.0


class Chat:
    """A conversation that is kept within the model's context by leaving out its oldest turns.

    Attributes:
        turns: what has been said so far, and still is in the context.
    """

    def __init__(
        self, engine: Engine, conversation: Conversation, how: Ask, system: str | None, say: Callable[[str], None]
    ) -> None:
        self._engine, self._conversation, self._say = engine, conversation, say
        self._how = replace(how, stops=conversation.stops, stream=True)
        self._fixed = 0 if system is None else 1
        self.turns = [] if system is None else [Turn("system", system)]

    def reply(self, text: str) -> Iterator[str]:
        """Pieces of the model's answer to the user's next words; ended early, what was shown is what was said.

        Raises:
            ConfigError: if these words alone do not fit, or the template refuses them; they are forgotten.
            HMoEError: if the model fails.
        """
        before = list(self.turns)
        self.turns.append(Turn("user", text))
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        try:
            prompt = self._fit()
            ask = replace(self._how, prompt=tuple(prompt), seed=(self._how.seed + len(self.turns)) % 2**63)
            job = self._engine.submit([ask], events.put, _SECONDS)
        except HMoEError:
            self.turns = before
            raise
        said = ""
        try:
            while True:
                event = events.get()
                if event.failure is not None:
                    raise HMoEError(event.failure.message)
                piece = event.text if said else event.text.lstrip()
                said += piece
                yield piece
                if event.finish is not None:
                    return
        finally:
            job.cancel()
            self.turns.append(Turn("assistant", said))

    def _fit(self) -> list[int]:
        """Tokens of the conversation, with room for the answer."""
        room, dropped = self._engine.capacity - self._how.max_tokens, 0
        while len(prompt := self._conversation.encode(self.turns)) > room:
            if len(self.turns) == self._fixed + 1:
                raise ConfigError(
                    f"{len(prompt)} tokens and max_tokens = {self._how.max_tokens} for the answer do not fit into the "
                    f"model's context of {self._engine.capacity}; say less, or lower --max-tokens"
                )
            pair = min(2, len(self.turns) - self._fixed - 1)  # the user's words and their answer
            del self.turns[self._fixed : self._fixed + pair]
            dropped += pair
        if dropped:
            self._say(
                f"the {dropped} oldest turns were left out, to fit into the context of {self._engine.capacity} tokens"
            )
        return prompt


def talk(chat: Chat, lines: Iterator[str], write: Callable[[str], None], say: Callable[[str], None]) -> None:
    """Answer every line; a line that fails is said so, and the conversation goes on."""
    for line in lines:
        if not line.strip():
            continue
        try:
            for piece in chat.reply(line.strip()):
                write(piece)
        except HMoEError as error:
            say(f"error: {error}")
            continue
        except KeyboardInterrupt:
            pass  # enough of this answer
        write("\n")
