"""What `hmoe bench` cannot measure is said in one line, and nothing is written."""

from pathlib import Path

import pytest

from hmoe.cli.main import run_command_line

pytestmark = pytest.mark.usefixtures("small_limits")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["layer", "--dim", "32"], "a shape of your own needs --dim and --widths"),
        (["layer", "--shape", "small", "--dim", "32", "--widths", "16"], "excludes --shape"),
        (["layer", "--dim", "32", "--widths", "16,x"], "--widths 16,x: must be numbers"),
        (["layer", "--dim", "32", "--widths", "16,0"], "must be an integer from 1 to"),
        (
            ["layer", "--dim", "32", "--widths", "16,32", "--top-k", "3"],
            "router.k = 3, must be at most the number of experts",
        ),
        (["layer", "--shape", "huge"], "--shape huge: must be one of 0.4B"),
        (["layer", "--against", "hmo"], "--against hmo: must be one of hmoe"),
        (["layer", "--against", "MegaBlocks"], "--against MegaBlocks: megablocks is not installed"),
        (["layer", "--against", "hmoe triton"], "--against hmoe triton: the Triton kernels run on a GPU"),
        (["layer", "--profile"], "--profile counts the kernels of a GPU, with --device cuda"),
        (["layer", "--dtype", "int8"], "--dtype int8: must be bfloat16"),
        (["layer", "--device", "tpu"], "--device tpu: must be cpu or cuda"),
        (["layer", "--rounds", "1"], "greater than or equal to 3"),
        (["decode", "--shape", "huge"], "--shape huge"),
        (["decode", "--dtype", "int8"], "--dtype int8"),
        (["step", "hmoe-3b-topk"], "embedded corpus; nearest choice: quickstart"),
        (["step", "hmoe-3b-topk"], "data.path=corpus data.tokenizer=bytes"),
        (["step", "tiny", "--precision", "int8"], "train.precision"),
        (
            ["step", "tiny", "train.precision=float64"],
            "train.precision = float64: must be float32 or bfloat16",
        ),
        (
            ["step", "tiny", "--train.precision", "float32", "--precision", "float32"],
            "--precision float32 and an override",
        ),
        (["step", "tiny", "train.device=cuda"], "train.device = cuda, but --device cpu"),
        (["step", "tiny", "--alnoe"], "alnoe"),
        (["step", "tiny", "data.batch_tokens=100"], "batch_tokens = 100"),
    ],
)
def test_errors_are_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["bench", *words, "--out", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
