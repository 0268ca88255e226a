"""A small model with experts, a folder of small benchmarks, and the whole result of the one on the other."""

from pathlib import Path
from typing import Any

import pytest

from hmoe.evaluate.harness import evaluate_tasks
from hmoe.model.transformer import Transformer
from tests.evaluate.helpers import LENGTH, ROUTERS, folder, model, words

Result = dict[str, Any]


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def moe_model() -> Transformer:
    return model(ROUTERS["top_p"])


@pytest.fixture(scope="module")
def whole(moe_model: Transformer, benchmarks: Path) -> Result:
    return evaluate_tasks(moe_model, words(), LENGTH, ["all"], benchmarks)
