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
    """The harness's task `stock`, its splits read from `data_files`; what else the config holds replaces stock keys."""

    def __init__(self, config: dict[str, Any]) -> None:
        own = {key: value for key, value in config.items() if key not in ("class", "stock", "data_files")}
        stock = load_yaml(_STOCK / config["stock"])
        metadata = {**stock.pop("metadata", {}), **own.pop("metadata", {})}
        for key in ("tag", "group", "task_list", "dataset_kwargs"):
            stock.pop(key, None)
        self._data_files: dict[str, str] = config["data_files"]
        where = {"dataset_path": "json", "dataset_name": None, "training_split": None}
        super().__init__(config={**stock, **where, **own, "metadata": metadata})

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        """Nothing is downloaded."""
        self.dataset = datasets.DatasetDict({split: _read(_HERE / name) for split, name in self._data_files.items()})


def _read(path: Path) -> Any:
    with path.open(encoding="utf-8") as lines:
        return datasets.Dataset.from_list([json.loads(line) for line in lines])
