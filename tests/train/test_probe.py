"""A probe text: what is written is what the weights do, equal runs write equal files, training does not notice."""

import hashlib
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hmoe.config import recipes
from hmoe.data.open import open_data
from hmoe.model.trace import RoutingTrace, trace
from hmoe.model.transformer import Transformer
from hmoe.runs.open_run import open_run
from hmoe.runs.probe_history import list_probe_steps, locate_probe, read_probe, read_probe_history
from tests.conftest import tiny
from tests.train.helpers import digests, run


@pytest.fixture(autouse=True)
def _one_thread() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def probes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that a run's probes left."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "probe").iterdir()}


def tabulate(probe: dict[str, Any]) -> torch.Tensor:
    shape = len(probe["blocks"]), len(probe["units"]), len(probe["widths"])
    chosen_ZTE = torch.zeros(shape, dtype=torch.bool)
    for layer, table in enumerate(probe["chosen"]):
        for token, experts in enumerate(table):
            chosen_ZTE[layer, token, experts] = True
    return chosen_ZTE


@pytest.mark.parametrize("recipe", ["tiny-topp", "tiny-gshard"])
def test_training_does_not_notice_and_files_come_when_due_and_at_the_end(tmp_path: Path, recipe: str) -> None:
    """GShard draws random numbers and has capacities."""
    run(tmp_path / "with", "train.inspect_every=4", recipe=recipe)
    run(tmp_path / "without", recipe=recipe)
    assert digests(tmp_path / "with") == digests(tmp_path / "without")
    assert list_probe_steps(tmp_path / "with") == [4, 6]
    assert not (tmp_path / "without" / "probe").exists()


def test_a_probe_adds_no_row_to_the_logs(tmp_path: Path) -> None:
    sparse = ["train.log_every=4", "train.eval_every=0"]
    steps = [row["step"] for row in run(tmp_path / "r", *sparse, "train.inspect_every=1")]
    assert steps == [4, 6]


def test_a_probe_is_what_the_weights_do_with_the_beginning_of_the_validation_split(tmp_path: Path) -> None:
    run(tmp_path / "r", "train.inspect_every=5", recipe="tiny-topp")
    probe = read_probe(tmp_path / "r", 6)
    index = open_data(recipes.read_recipe("tiny-topp", tiny("tiny-topp"))[1])
    first = index.tokens(index.of("valid")[0])[:512].tolist()
    assert [token for tokens in probe["tokens"] for token in tokens] == first
    assert {len(tokens) for tokens in probe["tokens"]} == {32}
    config, model, _, _ = open_run(tmp_path / "r", print)
    traced = trace(model, torch.tensor(probe["tokens"]))
    assert torch.equal(tabulate(probe), traced.chosen_ZTE)
    assert probe["units"] == traced.width_ZT.sum(0).tolist()
    assert config.model.moe is not None
    assert (probe["widths"], probe["blocks"]) == (list(config.model.moe.routed_widths), [0, 1])
    for nats, expected in zip(probe["nll"], traced.nll_T.tolist(), strict=True):
        assert (nats is None) == math.isnan(expected)
        assert nats is None or nats == pytest.approx(expected, abs=1e-4)
    assert probe["nll"].count(None) == 16


def test_a_run_that_goes_on_writes_the_same_files(tmp_path: Path) -> None:
    words = ["train.inspect_every=1", "train.steps=7", "train.keep=3"]
    run(tmp_path / "whole", *words)
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    for step in (6, 7):
        shutil.rmtree(tmp_path / "killed" / "checkpoints" / f"step-{step:08d}")
    # As after a kill: of steps that are lost, of another setting, and a file that was not finished.
    for step in (7, 9):
        locate_probe(tmp_path / "killed", step).write_bytes(b"{}")
    (tmp_path / "killed" / "probe" / ".step-00000005.json.tmp").write_bytes(b"{")
    run(tmp_path / "killed", *words)
    assert probes(tmp_path / "killed") == probes(tmp_path / "whole")
    assert len(probes(tmp_path / "whole")) == 7


def test_a_dense_run_has_likelihoods_alone_also_in_bfloat16(tmp_path: Path) -> None:
    run(tmp_path / "r", "train.inspect_every=3", "train.precision=bfloat16", recipe="tiny-dense")
    first, last = read_probe(tmp_path / "r", 3), read_probe(tmp_path / "r", 6)
    assert (last["chosen"], last["widths"], set(last["units"])) == ([], [], {0})
    known = [(a, b) for a, b in zip(first["nll"], last["nll"], strict=True) if a is not None]
    assert sum(b for _, b in known) < sum(a for a, _ in known)  # it learns
    assert read_probe_history(tmp_path / "r") == {"saturation": []}


@pytest.mark.parametrize("recipe", ["tiny", "tiny-topp"])
def test_weights_that_are_not_finite_have_no_likelihood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    def spoil(model: Transformer, tokens: torch.Tensor) -> RoutingTrace:
        with torch.no_grad():
            model.embed.weight.fill_(torch.nan)
        return trace(model, tokens)

    monkeypatch.setattr("hmoe.train.probe.trace", spoil)
    run(tmp_path / "r", "train.inspect_every=1", "train.steps=1", recipe=recipe)
    assert set(read_probe(tmp_path / "r", 1)["nll"]) == {None}
