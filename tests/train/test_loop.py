import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from hmoe import CheckpointError, ConfigError, DataError, NonFiniteError, RunBusyError
from hmoe.cli.main import run_command_line
from hmoe.config import recipes
from hmoe.model import transformer
from hmoe.runs.open_run import open_run
from hmoe.train.stop import StopRequest
from tests.conftest import tiny
from tests.train.helpers import call, command, digests, one_thread, rows, run


@pytest.fixture(autouse=True)
def _one_thread() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_run_leaves_what_it_promises(tmp_path: Path) -> None:
    table = run(tmp_path / "r", "train.sample_every=4")
    assert [row["step"] for row in table] == [1, 2, 3, 4, 5, 6]
    assert table[-1]["tokens"] == 6 * 128
    assert table[-1]["flops"] > 5 * table[0]["flops"]
    names = {"loss", "load_balance", "parameter_penalty", "router_entropy", "router_z", "loss_total", "grad_norm", "lr",
             "activated_parameters", "mean_activated_width", "experts_per_token", "expert_token_share",
             "expert_compute_share"}  # fmt: skip
    assert names <= set(table[0])
    assert [("validation_bits_per_byte" in row) for row in table] == [False, False, True, False, False, True]
    assert table[3]["sample"].startswith("The")
    for layer in table[0]["expert_compute_share"]:
        assert sum(layer) == pytest.approx(1, abs=1e-5)
    assert sorted(p.name for p in (tmp_path / "r" / "checkpoints").iterdir()) == [
        "step-00000004",
        "step-00000006",
    ]
    timing = [json.loads(line) for line in (tmp_path / "r" / "timing.jsonl").read_text().splitlines()]
    assert [row["step"] for row in timing] == [1, 2, 3, 4, 5, 6]
    config, model, tokenizer, state = open_run(tmp_path / "r", print)
    assert (state["step"], tokenizer.vocab_size, config.train.steps) == (6, 257, 6)
    assert sum(p.numel() for p in model.parameters()) > 0


def test_equal_runs_end_with_equal_bytes_and_a_seed_changes_them(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(tmp_path / name, f"seed={seed}")
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert digests(tmp_path / "a")["metrics.jsonl"] != digests(tmp_path / "c")["metrics.jsonl"]


def test_a_run_in_two_parts_is_the_run_in_one(tmp_path: Path) -> None:
    run(tmp_path / "whole", "train.eval_every=2")
    run(tmp_path / "parts", "train.eval_every=2", "train.steps=4")
    run(tmp_path / "parts", "train.eval_every=2", "train.steps=6")
    assert digests(tmp_path / "whole") == digests(tmp_path / "parts")


def test_a_corrupt_checkpoint_falls_back_and_the_end_is_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "whole", "train.steps=8")
    run(tmp_path / "r")
    file = tmp_path / "r" / "checkpoints" / "step-00000006" / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 16
    file.write_bytes(content)
    table = run(tmp_path / "r", "train.steps=8")
    assert "optimizer.safetensors: SHA-256 differs" in capsys.readouterr().out
    assert [row["step"] for row in table] == list(range(1, 9))
    whole = digests(tmp_path / "whole")
    assert {k: v for k, v in digests(tmp_path / "r").items() if "metrics" not in k} == {
        k: v for k, v in whole.items() if "metrics" not in k
    }


def test_when_every_checkpoint_is_corrupt_it_says_so(tmp_path: Path) -> None:
    run(tmp_path / "r")
    for file in (tmp_path / "r" / "checkpoints").glob("*/MANIFEST.json"):
        file.write_bytes(b"{}")
    for _ in range(2):
        with pytest.raises(CheckpointError, match="no checkpoint can be trusted"):
            run(tmp_path / "r")


def test_a_finished_run_is_a_no_op(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "r")
    before = digests(tmp_path / "r")
    run(tmp_path / "r")
    assert "finished already: step 6" in capsys.readouterr().out
    assert digests(tmp_path / "r") == before


def test_only_budgets_and_logging_may_change(tmp_path: Path) -> None:
    run(tmp_path / "r")
    with pytest.raises(ConfigError, match=r"optim\.lr: differs from"):
        run(tmp_path / "r", "optim.lr=0.5")
    run(tmp_path / "r", "train.steps=7", "train.save_every=5", "train.log_every=2", "train.sample_every=9")
    assert rows(tmp_path / "r")[-1]["step"] == 7


def test_a_start_that_failed_binds_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        run(tmp_path / "r", "data.path=/nowhere", "data.tokenizer=null")
    assert run(tmp_path / "r")[-1]["step"] == 6


def test_changed_data_is_refused(tmp_path: Path, corpus_jsonl: Path) -> None:
    from hmoe.data.prepare import PrepareRequest, prepare_data

    data = ["data.path=" + str(tmp_path / "d"), "data.tokenizer=null"]
    prepare_data(PrepareRequest([str(corpus_jsonl)], "bytes", validation=0.1), tmp_path / "d")
    run(tmp_path / "r", *data)
    shutil.rmtree(tmp_path / "d")
    prepare_data(PrepareRequest([str(corpus_jsonl)], "bytes", validation=0.2), tmp_path / "d")
    with pytest.raises(DataError, match="the data changed since the run was saved"):
        run(tmp_path / "r", *data, "train.steps=8")


def test_a_run_read_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "r", "data.tokenizer=bpe:280")
    (tmp_path / "r" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="not the tokenizer"):
        open_run(tmp_path / "r", print)


def test_a_stop_right_after_a_resume_saves_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "r", "train.steps=4")
    before = digests(tmp_path / "r")
    monkeypatch.setattr("hmoe.train.console.Console.end", lambda *_: None)
    stopped = StopRequest()
    stopped.signal_name = "SIGTERM"
    monkeypatch.setattr("hmoe.train.loop.STOP", stopped)
    run(tmp_path / "r")
    assert digests(tmp_path / "r") == before


@pytest.mark.parametrize("damage", [b"5\n", b'{"step": "1"}\n', b"{}\n", b'{"step": 700}\n', b"\xff\n"])
def test_damage_inside_the_metrics_is_named(tmp_path: Path, damage: bytes) -> None:
    run(tmp_path / "r")
    file = tmp_path / "r" / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:2], damage, *lines[3:]]))
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl:[34]: damaged line"):
        run(tmp_path / "r", "train.steps=8")


def test_a_seconds_budget_survives_a_resume(tmp_path: Path) -> None:
    run(tmp_path / "r", "train.log_every=1000")
    spent = json.loads((tmp_path / "r" / "timing.jsonl").read_text().splitlines()[-1])["seconds"]
    assert spent > 0
    run(tmp_path / "r", "train.log_every=1000", "train.steps=null", f"train.seconds={spent / 2}")
    assert rows(tmp_path / "r")[-1]["step"] == 6


def test_budgets_of_tokens_flops_and_seconds(tmp_path: Path) -> None:
    assert run(tmp_path / "t", "train.steps=null", "train.tokens=300")[-1]["step"] == 3
    first_flops = run(tmp_path / "one", "train.steps=1")[0]["flops"]
    assert run(tmp_path / "f", "train.steps=null", f"train.flops={2.5 * first_flops}")[-1]["step"] == 3
    assert run(tmp_path / "s", "train.steps=null", "train.seconds=1e-9")[-1]["step"] == 1


def test_a_vocabulary_too_small_for_the_data_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.vocab = 200: the tokenizer needs at least 257"):
        run(tmp_path / "r", "model.vocab=200")


def test_a_run_that_does_not_fit_is_refused_before_it_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs about .* [GT]B on cpu"):
        run(tmp_path / "r", "model.dim=65536", "model.layers=1000")


def test_five_steps_in_a_row_that_are_not_finite_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "r", "train.steps=4")
    monkeypatch.setattr("hmoe.model.transformer.cross_entropy", lambda x, *_: (x * float("nan")).sum())
    with pytest.raises(
        NonFiniteError, match="5 steps in a row; the newest checkpoint is that of step 4, from which"
    ):
        run(tmp_path / "r", "train.steps=20", "train.save_every=100")
    checkpoints = sorted((tmp_path / "r" / "checkpoints").glob("step-*"))
    table = rows(tmp_path / "r")
    assert table[-1]["loss"] is None
    assert table[-1]["skipped"] == 5
    monkeypatch.undo()
    _, model, _, state = open_run(tmp_path / "r", print)
    assert state["step"] == 4
    assert all(p.isfinite().all() for p in model.parameters())
    assert checkpoints


def test_bad_steps_before_any_checkpoint_say_that_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hmoe.model.transformer.cross_entropy", lambda x, *_: (x * float("nan")).sum())
    with pytest.raises(NonFiniteError, match="in a row; no checkpoint was written yet; see the data"):
        run(tmp_path / "r", "train.save_every=100")
    assert not (tmp_path / "r" / "checkpoints").exists()


def test_one_bad_step_is_the_run_that_skips_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = transformer.cross_entropy, 0

    def sometimes(*arguments: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return real(*arguments) * (float("nan") if calls in (5, 6) else 1)  # type: ignore[arg-type]

    monkeypatch.setattr(transformer, "cross_entropy", sometimes)
    table = run(tmp_path / "r")
    assert [row["skipped"] for row in table] == [0, 0, 1, 1, 1, 1]
    assert "update skipped" in table[2]["warnings"][0]
    assert table[3]["loss"] is not None


def test_an_expert_that_dies_is_announced(tmp_path: Path) -> None:
    """With 8 experts, top-1 and no balancing, some expert is idle for 3 steps of 2 tokens."""
    table = run(
        tmp_path / "r",
        "train.dead_after=3",
        "data.sequence_length=2",
        "data.batch_tokens=4",
        "model.moe.router.k=1",
    )
    assert any("got no token for 3 steps" in line for row in table for line in row.get("warnings", []))


def test_a_second_start_is_refused_at_once_with_the_holders_pid(tmp_path: Path) -> None:
    from hmoe.runs.run_folder import RunFolder

    config = recipes.read_recipe("tiny", tiny("tiny"))[1]
    with RunFolder(tmp_path / "r", config):
        with pytest.raises(RunBusyError, match=rf"process {os.getpid()} is training"):
            RunFolder(tmp_path / "r", config)
        words = command(tmp_path / "r")
        result = call(words[0], "-X", "importtime", *words[1:])
    assert result.returncode == 2
    assert "is training in this folder" in result.stderr
    assert "torch" not in result.stderr  # so it answers in well under a second


LONG = ["train.steps=90", "train.save_every=1000", "train.eval_every=0"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What LONG ends with if nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed") / "r"
    return train_by_one_thread(folder)


def train_by_one_thread(folder: Path) -> dict[str, str]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run(folder, *LONG)
    torch.set_num_threads(threads)
    return digests(folder)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_saves_and_the_same_command_ends_as_if_nothing_happened(
    tmp_path: Path, name: str, undisturbed: dict[str, str]
) -> None:
    words = LONG
    process = subprocess.Popen(
        command(tmp_path / "r", *words), env=one_thread(), stdout=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "r" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") > 3):
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(getattr(signal, name))
    out, _ = process.communicate()
    assert process.returncode == 0
    assert f"stopped by {name}, the same command continues: step " in out
    assert out.endswith(f"next:\n  hmoe train {tmp_path / 'r'}\n")
    assert 3 < len(rows(tmp_path / "r")) < 90
    assert train_by_one_thread(tmp_path / "r") == undisturbed


def test_a_signal_before_torch_is_imported_ends_well_too(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(tmp_path / "r", "train.steps=100000"), env=one_thread(), stdout=subprocess.PIPE, text=True
    )
    while not (tmp_path / "r" / ".lock").exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate()
    assert process.returncode == 0, out


@pytest.mark.parametrize(
    ("overrides", "code", "message"),
    [
        (["model.dimm=3"], 2, "nearest is model.dim"),
        (["data.path=/nowhere", "data.tokenizer=null"], 3, "no index.json"),
        (["train.device=cuda"], 2, "no CUDA device"),
    ],
)
def test_user_errors_are_one_line_and_an_exit_code(
    tmp_path: Path, overrides: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "cuda" in overrides[0] and torch.cuda.is_available():
        overrides, message = ["train.device=gpu"], "must be"
    assert run_command_line(command(tmp_path / "r", *overrides)[3:]) == code
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert "Traceback" not in error
