"""What a tokenizer loses of the texts is counted and said."""

import json
from pathlib import Path
from typing import Any

import pytest

from hmoe.cli.main import run_command_line as hmoe
from tests.data import kinds


@pytest.mark.parametrize(
    ("make", "text", "warning"),
    [
        (kinds.forgetful_bpe, "the \u6f22 bird", "loses text: 1 of 2 texts"),
        (kinds.word_level, "the fish", "1 tokens in all stand for unknown text"),
        (kinds.word_piece, "The  bird", "changes spaces or letters: 1 of 2 texts"),
        (kinds.byte_level, "The \u6f22\n </s>", ""),
        (kinds.llama, " The \u6f22\n </s>", ""),
    ],
)
def test_what_the_tokenizer_loses_is_said(
    make: Any, text: str, warning: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in ("the bird", text)))
    tokenizer = str(kinds.write(make(), tmp_path))
    command = ["data", "prepare", str(tmp_path / "text.jsonl"), "--tokenizer", tokenizer, "--validation", "0"]
    for _ in range(2):  # a finished folder says it again
        assert hmoe([*command, "--out", str(tmp_path / "data")]) == 0
        told = [line for line in capfd.readouterr().err.splitlines() if "the tokenizer " in line]
        assert len(told) == bool(warning)
        assert warning in "".join(told)
