import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hmoe.cli.main import run
from hmoe.config import recipes
from tests.conftest import sentences, tiny
from tests.train.helpers import run as train_run

HELP = [[], ["train"], ["plan"], ["config"], ["eval"], ["generate"], ["chat"], ["serve"], ["info"],
        ["export"], ["import"], ["upcycle"], ["data"], ["data", "prepare"], ["data", "benchmarks"], ["bench"], ["bench", "layer"],
        ["bench", "step"], ["bench", "decode"], ["bench", "model"]]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "run"
    train_run(folder)
    return folder


@pytest.mark.parametrize("verb", HELP, ids=str)
def test_every_verb_has_help(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*verb, "--help"]) == 0
    assert "Usage: hmoe" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [["--help"], ["plan", "hmoe-0.4b-topp"], ["config", "tiny"], ["train", "tiny", "--dry-run"]]
)
def test_nothing_heavy_is_imported_for_it(words: list[str]) -> None:
    heavy = "[m for m in ('torch', 'numpy', 'transformers') if m in sys.modules]"
    code = f"import sys; from hmoe.cli.main import run; assert run({words}) == 0; print({heavy})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "error", [MemoryError("x"), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")]
)
def test_too_little_memory_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("hmoe.config.plan.plan", fail)
    assert run(["plan", "tiny"]) == 2
    assert capsys.readouterr().err.startswith("hmoe: error: not enough memory")


def test_plan_prints_the_promised_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "moe-0.4b-topk", "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["total_parameters"] == 417_295_104
    assert numbers["activated_parameters"] == 162_491_136
    promised = {
        "activated_parameters_range",
        "flops_per_token",
        "memory_bytes",
        "memory_by_part_bytes",
        "budget_tokens",
    }
    assert promised <= set(numbers)
    assert run(["plan", "moe-0.4b-topk", "model.layers=6"]) == 0
    assert re.search(r"total_parameters +233,\d\d\d,\d\d\d", capsys.readouterr().out)


def test_config_prints_a_recipe_that_trains_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "hmoe-3b-topp", "--optim.lr", "3e-4", "seed=5"]) == 0
    text = capsys.readouterr().out
    (tmp_path / "r.yaml").write_text(text)
    config = recipes.load(str(tmp_path / "r.yaml"))[1]
    data = f"data.path={tmp_path / 'data' / 'redpajama'}"  # relative to the file
    assert config == recipes.load("hmoe-3b-topp", ["optim.lr=3e-4", "seed=5", data])[1]
    assert yaml.safe_load(text)["optim"]["lr"] == 3e-4


def test_dry_run_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["train", "tiny", "--dry-run"]) == 0
    assert "total_parameters" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_prepare_train_eval_generate(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Our own text, as jsonl.zst and parquet, through every verb."""
    import pyarrow
    import zstandard
    from pyarrow import parquet

    texts = [sentences(i, 20) for i in range(40)]
    lines = "".join(json.dumps({"text": t}) + "\n" for t in texts[:20]).encode()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(lines))
    parquet.write_table(pyarrow.table({"text": texts[20:]}), tmp_path / "in" / "b.parquet")
    data, folder = str(tmp_path / "data"), str(tmp_path / "run")
    assert (
        run(["data", "prepare", str(tmp_path / "in"), "--out", data, "--tokenizer", "bpe:300", "--validation", "0.1"])
        == 0
    )
    assert "vocabulary 300" in capfd.readouterr().out
    small = [o for o in tiny("tiny") if "tokenizer" not in o and "data.path" not in o]
    words = ["train", "tiny", "--run", folder, *small, f"data.path={data}", "train.steps=40", "train.sample_every=0"]
    assert run(words) == 0
    capfd.readouterr()
    assert run(["eval", folder, "--json"]) == 0
    numbers = json.loads(capfd.readouterr().out)
    assert numbers["step"] == 40
    assert 0 < numbers["bits_per_byte"] < 8
    assert run(["eval", folder, "--text", str(tmp_path / "in" / "b.parquet"), "--window", "16"]) == 0
    assert "bits_per_byte" in capfd.readouterr().out
    assert run(["generate", folder, "The old", "--max-tokens", "12", "--seed", "3"]) == 0
    first = capfd.readouterr().out
    assert first.startswith("The old")
    assert run(["generate", folder, "The old", "--max-tokens", "12", "--seed", "3"]) == 0
    assert capfd.readouterr().out == first


def test_generate_says_when_it_leaves_the_trained_length(trained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", str(trained), "abc", "--max-tokens", "40", "--temperature", "0"]) == 0
    assert "43 tokens; the model was trained on 32" in capfd.readouterr().err


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("hmoe", "torch", "cpu", "gpu", "extra [data]"))


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["tran"], 2, "No such command 'tran'"),
        (["plan"], 2, "Missing argument"),
        (["plan", "tinny"], 2, "nearest preset is tiny"),
        (["plan", "tiny", "model.dim=x"], 2, "model.dim = 'x'"),
        (["train", "tiny", "--rnu", "x"], 2, "rnu: unknown key"),
        (["eval", "/nowhere"], 2, "not a run folder"),
        (["eval", "/nowhere", "--text-field", "x"], 2, "no effect without --text"),
        (["generate", "/nowhere", "x"], 2, "not a run folder"),
        (["generate", "/nowhere", "x", "--temperature", "-1"], 2, "temperature = -1"),
        (["generate", "/nowhere", "\udce9"], 2, "not valid UTF-8"),
        (["plan", "a\nb"], 2, "no preset"),
        (["generate", "/nowhere", "x", "--max-tokens", "0"], 2, "greater than or equal to 1"),
        (["data", "prepare", "/nowhere", "--out", "/tmp/x"], 3, "no such file"),
        (["data", "prepare", "/nowhere", "--out", "/tmp/x", "--weight", "a"], 2, "must be domain=NUMBER"),
        (["data", "prepare", "/nowhere", "--out", "/tmp/x", "--tokenizer", "bpe:3"], 2, "bpe:8192"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(
    words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words) == code
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1
    assert err.startswith("hmoe: error: ")


def test_a_closed_pipe_is_no_traceback() -> None:
    command = f"{sys.executable} -m hmoe config hmoe-3b-topk | head -1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert result.stderr == ""


def test_a_missing_extra_is_one_line_with_the_command(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"x")
    code = (
        "import sys; sys.modules['pyarrow'] = None; from hmoe.cli.main import run; "
        f"sys.exit(run(['data', 'prepare', {str(tmp_path)!r}, '--out', {str(tmp_path / 'o')!r}, '--tokenizer', 'bytes']))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == "hmoe: error: parquet files need the data extra: pip install 'hmoe[data]'\n"
