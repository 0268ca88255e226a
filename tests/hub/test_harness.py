"""`model="hmoe"` in lm-evaluation-harness."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

from hmoe import ConfigError
from hmoe.errors import make_install_command
from hmoe.evaluate.harness import evaluate_tasks
from hmoe.hub.harness import HMoELanguageModel
from hmoe.runs.open_model import open_model
from tests.evaluate.helpers import folder
from tests.evaluate.independent import accuracies, questions
from tests.train.helpers import run as train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("named") / "run"
    train(path, "data.sequence_length=128", "data.batch_tokens=256", "train.steps=2")
    return path


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("data"))


def simple(benchmarks: Path, arguments: Any, **options: Any) -> dict[str, Any]:
    manager = TaskManager(include_path=str(benchmarks), include_defaults=False)
    names = ["piqa_local", "boolq_local"]
    results = lm_eval.simple_evaluate(
        "hmoe", arguments, tasks=names, task_manager=manager, limit=4, **options
    )
    assert results is not None
    return {name.removesuffix("_local"): row for name, row in results["results"].items()}


def test_the_harness_opens_it_by_name(trained: Path, benchmarks: Path) -> None:
    named = simple(benchmarks, f"pretrained={trained},batch_tokens=300")
    opened = open_model(trained, print)
    ours = evaluate_tasks(opened.model, opened.tokenizer, 128, ["piqa", "boolq"], benchmarks)
    for name, row in named.items():
        plain, _, _ = accuracies(opened.model, opened.tokenizer, questions(benchmarks, name, 4), 128)
        assert row["acc,none"] == plain
    assert ours["tasks"]["piqa"]["documents"] == 7
    assert simple(benchmarks, {"pretrained": str(trained)}, batch_size=3, device="cpu") == named


def test_batch_size_counts_sequences_and_other_options_reach_the_model(trained: Path) -> None:
    model = HMoELanguageModel(str(trained), batch_size="3", max_length=50, precision="bfloat16")
    assert (model._batch_tokens, model.max_length, model._precision.name) == (150, 50, "bfloat16")
    assert HMoELanguageModel(str(trained)).max_length == 128
    assert get_model("hmoe") is HMoELanguageModel


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": "auto"}, "batch_size = auto, must be an integer"),
        ({"batch_size": 0}, "batch_size = 0, must be an integer of at least 1"),
        ({"batch_size": 1, "batch_tokens": 9}, "give one of them"),
        ({"precision": "int3"}, "precision = int3"),
    ],
)
def test_options_that_do_not_work(trained: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HMoELanguageModel(str(trained), **options)


def test_no_folder_no_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run folder"):
        HMoELanguageModel(str(tmp_path))


def test_a_missing_extra_is_one_line() -> None:
    code = (
        "import sys; sys.modules['lm_eval'] = None; sys.modules['lm_eval.api.registry'] = None\n"
        "from hmoe.errors import ConfigError\n"
        "try: import hmoe.hub.harness\n"
        "except ConfigError as error: print(error)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == f"benchmark tasks need the eval extra: {make_install_command('eval')}\n"
