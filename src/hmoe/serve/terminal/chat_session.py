"""A conversation in a terminal, or with lines piped in, over the engine."""

import queue
from collections.abc import Callable, Iterator
from dataclasses import replace

from hmoe.errors import ConfigError, HMoEError
from hmoe.serve.chat_prompt import ChatLayout, ChatTurn
from hmoe.serve.engine.engine import Engine
from hmoe.serve.engine.types import SequenceEvent, SequenceTask

_ANSWER_SECONDS = 86400.0  # who waits for an answer ends it with Ctrl-C, so the engine need not


class ChatSession:
    """Holds a conversation and keeps it within the model's context by leaving out its oldest turns.

    Args:
        engine: computes the answers.
        layout: turns the conversation into tokens.
        options: of every answer; its prompt, stops and stream are set here.
        system: what the model is told before the first turn; it is never left out.
        say: tells the user something that is no part of the conversation.

    Attributes:
        turns: what the user and the model told each other, and still is in the context.
    """

    def __init__(
        self,
        engine: Engine,
        layout: ChatLayout,
        options: SequenceTask,
        system: str | None,
        say: Callable[[str], None],
    ) -> None:
        self._engine, self._layout, self._say = engine, layout, say
        self._options = replace(options, stops=layout.stops, stream=True)
        self._num_fixed = 0 if system is None else 1
        self.turns = [] if system is None else [ChatTurn("system", system)]

    def reply(self, text: str) -> Iterator[str]:
        """Yield pieces of the answer to the user's next words; if closed early, the turn is what was yielded.

        Raises:
            ConfigError: if these words alone do not fit, or the template refuses them; they are forgotten.
            HMoEError: if the model fails.
        """
        turns_before = list(self.turns)
        self.turns.append(ChatTurn("user", text))
        events: queue.SimpleQueue[SequenceEvent] = queue.SimpleQueue()
        try:
            prompt = self._fit_into_context()
            # Each turn draws its own random numbers.
            seed = (self._options.seed + len(self.turns)) % 2**63
            task = replace(self._options, prompt=tuple(prompt), seed=seed)
            job = self._engine.submit([task], events.put, _ANSWER_SECONDS)
        except HMoEError:
            self.turns = turns_before
            raise
        answer = ""
        try:
            while True:
                event = events.get()
                if event.failure is not None:
                    raise HMoEError(event.failure.message)
                # Plain lines end in "Assistant:", after which models begin with a space.
                piece = event.text if answer else event.text.lstrip()
                answer += piece
                yield piece
                if event.finish is not None:
                    return
        finally:
            job.cancel()
            self.turns.append(ChatTurn("assistant", answer))

    def _fit_into_context(self) -> list[int]:
        """Leave out the oldest turns until there is room for the answer; return the tokens of the others."""
        room, num_dropped = self._engine.capacity - self._options.max_tokens, 0
        while len(prompt := self._layout.encode(self.turns)) > room:
            if len(self.turns) == self._num_fixed + 1:
                raise ConfigError(
                    f"{len(prompt)} tokens and max_tokens = {self._options.max_tokens} for the answer do not "
                    f"fit into the model's context of {self._engine.capacity}; say less, or lower max_tokens",
                    argument="max_tokens",
                )
            # The user's words go with their answer, as many templates demand that the roles alternate.
            num_oldest = min(2, len(self.turns) - self._num_fixed - 1)
            del self.turns[self._num_fixed : self._num_fixed + num_oldest]
            num_dropped += num_oldest
        if num_dropped:
            self._say(
                f"the {num_dropped} oldest turns were left out, "
                f"to fit into the context of {self._engine.capacity} tokens"
            )
        return prompt


def answer_lines(
    chat: ChatSession, lines: Iterator[str], write: Callable[[str], None], say: Callable[[str], None]
) -> None:
    """Answer every line; where one fails the error is told, and the conversation goes on."""
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
            pass  # the user has read enough of this answer, and may ask on
        write("\n")
