"""What is served is what the tokenizer decodes, up to a stop text."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from hmoe.data.tokenizer import load_tokenizer
from hmoe.model.generate import Sampling
from hmoe.serve.engine.engine import Engine
from hmoe.serve.engine.stop_texts import StoppableText
from hmoe.serve.engine.types import EngineLimits, SequenceTask
from tests.data import kinds
from tests.serve.helpers import CONTEXT, Asked, model


def written(kind: str, text: str, stops: Sequence[str], folder: Path) -> tuple[str, list[str]]:
    """What is left at the end, and what is shown after each token."""
    tokenizer = load_tokenizer(kinds.write(kinds.KINDS[kind](), folder))
    prompt, ids = tokenizer.encode(["the"])[0], tokenizer.encode([text])[0]
    writer, shown = StoppableText(tokenizer.detokenizer(prompt), stops), []
    for token in ids:
        stopped = writer.add(token)
        shown.append(writer.text[: writer.count_safe()] if not stopped else writer.text)
        if stopped:
            break
    writer.end()
    return writer.text, shown


def test_stop_texts_are_found_in_the_decoded_text(tmp_path: Path) -> None:
    assert written("word piece", "bird sings the bird", ["ngs th"], tmp_path)[0] == " bird si"
    assert written("suffix", "bird the bird", [" the b"], tmp_path)[0] == " bird"
    assert written("llama", "bird\nthe", ["\n"], tmp_path)[0] == " bird"  # a byte on its own stops at once
    text, shown = written("byte level", "abcab", ["cax"], tmp_path)
    assert text == "abcab"
    assert shown == ["a", "ab", "ab", "ab", "abcab"]


@pytest.mark.parametrize("kind", ["llama", "word piece", "suffix", "word level"])
def test_served_text_is_the_decoded_text(kind: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(kinds.write(kinds.KINDS[kind](), tmp_path))
    prompt = tokenizer.encode(["the bird"])[0]
    with Engine(model(), tokenizer, EngineLimits(context_length=CONTEXT)) as engine:
        bias = dict.fromkeys(tokenizer.ends, -1e9)
        asks = [
            SequenceTask(tuple(prompt), 16, Sampling(1.0), seed, bias, logprobs=0, stream=seed % 2 == 0)
            for seed in range(4)
        ]
        answers = Asked(engine, asks).wait()
    for answer in answers:
        assert tokenizer.decode(prompt) + answer.text == tokenizer.decode([*prompt, *answer.ids])
        assert len(answer.ids) == 16
