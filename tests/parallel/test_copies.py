"""Copies that differ are told by name; that a run stops before it saves them is R8 of tests/faults."""

from typing import Any, cast

import pytest
import torch

from hmoe.errors import DistributedError
from hmoe.parallel.copies import check_copies, describe_arithmetic, describe_difference_of_copies
from hmoe.train import alike

HASHES = {"a, rows 0 to 3": 5, "b, row 0": 7}


def test_equal_copies_and_rows_of_one_process_alone_are_no_difference() -> None:
    assert describe_difference_of_copies([]) == ""
    assert describe_difference_of_copies([HASHES, HASHES, HASHES]) == ""
    assert describe_difference_of_copies([{"a, rows 0 to 1": 1}, {"a, rows 2 to 3": 2}, {}]) == ""


@pytest.mark.parametrize("rows", HASHES)
@pytest.mark.parametrize("rank", [1, 2])
def test_the_first_rows_and_the_processes_are_named(rows: str, rank: int) -> None:
    hashes = [dict(HASHES) for _ in range(3)]
    hashes[rank][rows] ^= 1
    expected = f"{rows}: process {rank} holds other bits than process 0"
    assert describe_difference_of_copies(hashes) == expected


def test_who_holds_a_copy_first_is_compared_with() -> None:
    rows = "b, row 0"
    told = describe_difference_of_copies([{}, {rows: 1}, {}, {rows: 2}])
    assert told == f"{rows}: process 3 holds other bits than process 1"


class Ranks:
    """What is asked of two processes of which the other one computes otherwise."""

    rank, size = 0, 2

    def __init__(self, other: str) -> None:
        self._other = other

    def gather_values(self, value: object) -> list[object]:
        return [value, self._other if isinstance(value, str) else [self._other, {"a, row 0": 0}]]


def test_processors_of_different_kinds_are_told_and_nothing_is_compared() -> None:
    told: list[str] = []
    alike._warn_of_other_processors("cpu", cast(Any, Ranks("another processor")), told.append)
    assert len(told) == 1
    assert told[0].startswith("process 1 computes with another processor, this one with ")
    alike._warn_of_other_processors("cpu", cast(Any, Ranks(describe_arithmetic("cpu"))), told.append)
    assert len(told) == 1
    model = torch.nn.ParameterDict({"a": torch.nn.Parameter(torch.ones(1))})
    optimizer = torch.optim.AdamW(model.parameters())
    check_copies(model, optimizer, cast(Any, Ranks("another processor")), 3)
    with pytest.raises(DistributedError, match="step 3: a, row 0: process 1 holds other bits than process 0"):
        check_copies(model, optimizer, cast(Any, Ranks(describe_arithmetic("cpu"))), 3)
