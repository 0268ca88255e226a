"""What a run opens, checks and keeps when it begins or goes on."""

from pathlib import Path

import pytest

from hmoe.config import recipes
from hmoe.data.hugging_face_tokenizer import HuggingFaceTokenizer
from hmoe.runs.hf_tokenizer import encode_bytes_tokenizer
from hmoe.train.console import Console
from hmoe.train.session import RunCounts, _keep_tokenizer, measure_progress


def test_a_damaged_tokenizer_is_written_again_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = HuggingFaceTokenizer(encode_bytes_tokenizer(), "", "<|endoftext|>")
    for resumed, told in ((False, 0), (True, 0), (True, 1)):
        if told:
            (tmp_path / "tokenizer.json").write_bytes(tokenizer.content[:-1])
        _keep_tokenizer(tmp_path, tokenizer, resumed, Console())
        assert capsys.readouterr().out.count("is lost or damaged, written again from the data") == told
        assert (tmp_path / "tokenizer.json").read_bytes() == tokenizer.content


def test_the_budget_nearest_to_its_end_counts() -> None:
    config = recipes.read_recipe("tiny", ["train.steps=10", "train.tokens=1000", "train.seconds=100"])[1]
    assert measure_progress(config, RunCounts(step=5, tokens=100), 10.0) == 0.5
    assert measure_progress(config, RunCounts(step=5, tokens=900), 10.0) == 0.9
    assert measure_progress(config, RunCounts(step=1, tokens=1), 200.0) == 2.0
