"""A model whose experts lie in a file answers as one that has all of them in memory."""

from pathlib import Path

import pytest
import torch

from hmoe.errors import ConfigError
from hmoe.hub.save import save_model
from hmoe.parallel.offloaded_model import OffloadForReading
from hmoe.runs.open_model import open_model
from hmoe.serve.engine.engine import Engine
from hmoe.serve.engine.types import EngineLimits
from hmoe.serve.http.metrics import Metrics
from hmoe.specs.offload import count_fewest_bytes
from tests.serve.helpers import CONTEXT, TOKENIZER, TOP_P, ask, greedy, model, prompt
from tests.train.helpers import run as train_run


def count_least(folder: Path) -> int:
    spec = open_model(folder, print).model.config
    assert spec.moe is not None
    return count_fewest_bytes([spec.moe.expert_widths] * len(spec.moe_layers), spec.dim, 4)


@pytest.mark.parametrize("kind", ["run", "hugging face"])
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_answers_and_bits_are_those_of_a_model_in_memory(
    kind: str, precision: torch.dtype | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "hmoe.kernels.native.can_use_library", lambda x_TD: False
    )  # experts elsewhere have the loop
    folder = tmp_path / "model"
    if kind == "run":
        train_run(folder, "train.steps=2", "train.save_every=2")
    else:
        save_model(model(TOP_P), TOKENIZER, folder, CONTEXT)
    whole = open_model(folder, print).model
    if precision is not None:
        whole.to(precision)
    memory = OffloadForReading(tmp_path, count_least(folder), precision)
    opened = open_model(folder, print, memory)
    assert memory.offload is not None
    tokens = torch.arange(40)[None]
    with torch.inference_mode():
        assert torch.equal(opened.model(tokens)[0], whole(tokens)[0])
    tasks = [greedy(prompt(seed, 5 + 9 * seed), max_tokens=12) for seed in range(3)]
    with (
        Engine(whole, TOKENIZER, EngineLimits(context_length=CONTEXT)) as plain,
        Engine(opened.model, TOKENIZER, EngineLimits(context_length=CONTEXT)) as frugal,
    ):
        expected, answers = (ask(engine, *tasks) for engine in (plain, frugal))
        page = Metrics().page(frugal, 1, memory.offload)
    assert [(a.ids, a.text) for a in answers] == [(a.ids, a.text) for a in expected]
    assert all(len(answer.ids) == 12 for answer in answers)
    counts = dict(line.split() for line in page.splitlines() if line.startswith("hmoe_expert_"))
    assert float(counts["hmoe_expert_hits_total"]) > 0
    assert float(counts["hmoe_expert_read_bytes_total"]) > count_least(folder)
    assert "hmoe_expert_right_guesses_total" in counts
    memory.offload.close()


def test_what_does_not_hold_two_experts_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_model(model(), TOKENIZER, folder, CONTEXT)
    with pytest.raises(ConfigError, match="most_bytes = 1000: must hold the two widest experts"):
        open_model(folder, print, OffloadForReading(tmp_path, 1000))
