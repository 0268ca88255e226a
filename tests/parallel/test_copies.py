"""Copies that differ are told by name; that a run stops before it saves them is R8 of tests/faults."""

import pytest

from hmoe.parallel.copies import describe_difference_of_copies

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
