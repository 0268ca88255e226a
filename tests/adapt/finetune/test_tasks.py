"""Every task from a row in its own columns, and every score, worked by hand."""

from pathlib import Path

import pytest

from hmoe import ConfigError
from hmoe.adapt.finetune.load_examples import load_task_examples
from hmoe.adapt.finetune.tasks import TASKS, change_task_settings, get_finetune_task
from tests.adapt.finetune.helpers import ROWS, write


def test_there_is_a_row_for_every_task() -> None:
    assert set(ROWS) == set(TASKS)


@pytest.mark.parametrize("name", list(ROWS))
def test_a_row_becomes_text(name: str, tmp_path: Path) -> None:
    row, expected = ROWS[name]
    for split in ("train", "validation"):
        write(tmp_path, [row, row], split)
    for split_examples in load_task_examples(get_finetune_task(name), tmp_path):
        assert [(example.source, example.targets) for example in split_examples] == expected * 2
    if name == "superglue-multirc":
        assert split_examples[0].group == "4.2"


def test_what_is_unknown_or_out_of_range_is_named() -> None:
    with pytest.raises(ConfigError, match="task colla: unknown; must be one of cola, sst2"):
        get_finetune_task("colla")
    with pytest.raises(ConfigError, match="seed = 4294967296, must be from 0 to 4294967295"):
        change_task_settings(get_finetune_task("cola"), seed=2**32)
    with pytest.raises(ConfigError, match="epochs = 0, must be from 1"):
        change_task_settings(get_finetune_task("cola"), epochs=0)
    with pytest.raises(ConfigError, match="lr = 2, must be above 0 and below 1"):
        change_task_settings(get_finetune_task("cola"), lr=2)
    paper = change_task_settings(get_finetune_task("squad"), lr=None)
    assert (paper.lr, paper.epochs, paper.batch, paper.source_length, paper.stride, paper.seed) == (
        3e-5,
        10,
        8,
        384,
        128,
        42,
    )
