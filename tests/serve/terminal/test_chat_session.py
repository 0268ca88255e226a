import pytest

from hmoe import ConfigError
from hmoe.data.tokenizer import ByteTokenizer
from hmoe.serve.chat_prompt import ChatLayout, ChatTurn
from hmoe.serve.engine.engine import Engine
from hmoe.serve.engine.types import EngineLimits, SequenceTask
from hmoe.serve.terminal.chat_session import ChatSession, answer_lines
from tests.serve.helpers import engine, model


def chat(started: Engine, system: str | None = None, max_tokens: int = 12) -> tuple[ChatSession, list[str]]:
    notices: list[str] = []
    how = SequenceTask((), max_tokens, bias={256: -1e9, **{i: -1e9 for i in range(128, 256)}})
    return ChatSession(started, ChatLayout(ByteTokenizer(), None), how, system, notices.append), notices


def test_a_conversation_stays_within_the_context() -> None:
    """96 tokens, 12 of them for the answer; the system's turn stays, the oldest others go."""
    talking, notices = chat(engine(), "Be kind.")
    for i in range(6):
        answer = "".join(talking.reply(f"turn {i}"))
        assert talking.turns[0] == ChatTurn("system", "Be kind.")
        assert talking.turns[-2:] == [ChatTurn("user", f"turn {i}"), ChatTurn("assistant", answer)]
    assert len(talking.turns) < 13
    assert any("oldest turns were left out" in line for line in notices)
    before = list(talking.turns)
    with pytest.raises(ConfigError, match="do not fit"):
        list(talking.reply("x" * 90))
    assert talking.turns == before


def test_talk_answers_every_line_and_goes_on_after_errors() -> None:
    talking, _ = chat(engine())
    written: list[str] = []
    notices: list[str] = []
    answer_lines(talking, iter(["hi\n", "\n", "x" * 100 + "\n", "again\n"]), written.append, notices.append)
    assert "".join(written).count("\n") >= 2
    assert len(notices) == 1
    assert notices[0].startswith("error: ")
    again, _ = chat(engine())
    repeated: list[str] = []
    answer_lines(again, iter(["hi\n"]), repeated.append, notices.append)
    assert "".join(written).startswith("".join(repeated).rstrip("\n"))


def test_words_that_the_template_refuses_are_forgotten() -> None:
    template = (
        "{% for m in messages %}{% if m.content == 'boom' %}{{ raise_exception('boom') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    started = engine()
    how = SequenceTask((), 8, bias={256: -1e9, **{i: -1e9 for i in range(128, 256)}})
    talking = ChatSession(started, ChatLayout(ByteTokenizer(), template), how, None, [].append)
    notices: list[str] = []
    answer_lines(talking, iter(["hello\n", "boom\n", "again\n"]), [].append, notices.append)
    assert len(notices) == 1
    assert [turn.content for turn in talking.turns if turn.role == "user"] == ["hello", "again"]


def test_an_answer_that_is_broken_off_is_kept_as_it_was() -> None:
    started = engine()
    talking, _ = chat(started, max_tokens=40)
    answer = talking.reply("hi")
    piece = next(answer)
    answer.close()
    assert talking.turns[-1] == ChatTurn("assistant", piece)
    assert "".join(talking.reply("go on"))
    assert EngineLimits().max_batch > 1
    assert model() is not None
