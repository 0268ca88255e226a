"""Tasks of lm-evaluation-harness over the files beside this one.

`hmoe data benchmarks` copies this module into the folder it makes, where the harness loads it; hmoe never imports it.
Prompts and metrics are the harness's own, read where it is installed, so the folder works wherever it lies.
"""

import json
from pathlib import Path
from typing import Any

import datasets
import lm_eval
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

_HERE = Path(__file__).parent
_STOCK = Path(lm_eval.__file__).parent / "tasks"


class LocalTask(ConfigurableTask):  # type: ignore[misc]
    """The harness's task `stock`, its splits read from `data_files`, of them documents with the columns in `only`; what else
    the config holds replaces stock keys."""

    def __init__(self, config: dict[str, Any]) -> None:
        own = {key: value for key, value in config.items() if key not in ("class", "stock", "data_files", "only")}
        stock = load_yaml(_STOCK / config["stock"])
        metadata = {**stock.pop("metadata", {}), **own.pop("metadata", {})}
        for key in ("tag", "group", "task_list", "dataset_kwargs"):
            stock.pop(key, None)
        for key in ("validation_split", "test_split", "fewshot_split"):
            if stock.get(key) not in config["data_files"]:
                stock.pop(key, None)
        self._data_files: dict[str, str] = config["data_files"]
        self._only: dict[str, str] = config.get("only", {})
        where = {"dataset_path": "json", "dataset_name": None, "training_split": None}
        super().__init__(config={**stock, **where, **own, "metadata": metadata})

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        """Nothing is downloaded."""
        self.dataset = datasets.DatasetDict(
            {split: _read(_HERE / name, self._only) for split, name in self._data_files.items()}
        )


def _read(path: Path, only: dict[str, str]) -> Any:
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return datasets.Dataset.from_list([row for row in rows if all(row[name] == value for name, value in only.items())])
