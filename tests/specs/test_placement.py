"""A placement is a value: checked, measured by hand, and the same after it was written down."""

import json

import pytest

from hmoe.errors import ConfigError
from hmoe.specs.placement import (
    ExpertPart,
    Placement,
    measure_balance,
    measure_load,
    place_contiguously,
)

WIDTHS = (5, 3, 7, 2)
CUT = Placement(
    WIDTHS,
    3,
    (ExpertPart(2, 4, 3, 2), ExpertPart(0, 0, 5, 0), ExpertPart(1, 0, 3, 1), ExpertPart(2, 0, 4, 1)),
    (3,),
)


def test_parts_and_rows_are_in_the_order_of_experts() -> None:
    assert [part.expert for part in CUT.parts] == [0, 1, 2, 2]
    assert CUT.list_rows(0) == [range(5)]
    assert CUT.list_rows(1) == [range(5, 8), range(8, 12)]
    assert CUT.list_rows(2) == [range(12, 15)]
    assert CUT.list_replica_rows() == [range(15, 17)]
    assert [CUT.count_units(rank) for rank in range(3)] == [5, 7, 3]
    assert (CUT.num_cuts, CUT.list_whole_ranks()) == (1, [0, 1, None, None])


def test_plain_values_give_the_same_placement() -> None:
    assert Placement.from_plain(json.loads(json.dumps(CUT.to_plain()))) == CUT


@pytest.mark.parametrize(
    ("parts", "everywhere", "said"),
    [
        ([(0, 0, 5, 0), (1, 0, 3, 1), (2, 0, 7, 1)], (), "0 of 2 units of expert 3 have a process"),
        ([(0, 0, 5, 0), (1, 0, 3, 1), (2, 0, 6, 1)], (3,), "6 of 7 units of expert 2"),
        ([(0, 0, 5, 0), (1, 0, 3, 1), (2, 0, 7, 1)], (2, 3), "7 of 0 units of expert 2"),
        ([(0, 0, 5, 0), (0, 4, 1, 1)], (), "unit 4 of expert 0 lies nowhere or twice"),
        ([(0, 1, 4, 0)], (), "unit 0 of expert 0 lies nowhere or twice"),
        ([(0, 0, 5, 3)], (), "expert 0 on process 3, must be one of 4 experts on one of 3 processes"),
        ([(4, 0, 5, 0)], (), "expert 4 on process 0"),
        ([(0, 0, 5, 0), (1, 0, 3, 1), (2, 0, 7, 1), (3, 0, 2, 1)], (4,), "there are 4 experts"),
    ],
)
def test_what_lies_nowhere_or_twice_is_named(
    parts: list[tuple[int, int, int, int]], everywhere: tuple[int, ...], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        Placement(WIDTHS, 3, tuple(ExpertPart(*part) for part in parts), everywhere)


def test_balance_and_load_are_those_of_a_count_by_hand() -> None:
    frequencies = [1.0, 2.0, 0.5, 4.0]
    balance = measure_balance(CUT, frequencies)
    # Units: 5, 7 and 3, and 2 of the replica on each; work: 5, 6 + 2 and 1.5, and a third of 8 on each.
    assert balance.memory == pytest.approx(9 * 3 / 17)
    assert balance.compute == pytest.approx((8 + 8 / 3) * 3 / (5 + 8 + 1.5 + 8))
    assert balance.worst == balance.memory
    load = measure_load([CUT], [[0.5, 0.25, 0.5, 1.0]])
    assert load.units == pytest.approx(7 * 3 / 17)
    assert load.replicas == pytest.approx(2 / 17)
    # Needed with probability 1/2, 1 - 3/4 x 1/2 = 5/8, and 1/2; the second process receives most.
    assert load.rows == pytest.approx(max(0.5 + 0.625, 2 * 0.625))
    # By pair: a token of the cut expert travels twice.
    assert measure_load([CUT], [[0.5, 0.25, 0.5, 1.0]], by_pair=True).rows == pytest.approx(2 * 0.75)


def test_a_router_of_one_expert_sends_each_token_once() -> None:
    """Top-1 over alike experts on two processes: half of the tokens travel; independence would say fewer."""
    placement = place_contiguously([4] * 64, 2)
    probabilities = [[1 / 64] * 64]
    assert measure_load([placement], probabilities, fixed_count=1).rows == pytest.approx(0.5)
    assert measure_load([placement], probabilities).rows == pytest.approx(1 - (1 - 1 / 64) ** 32)
    # Top-2 of four, all pairs alike: five of six pairs need a process that has two of them.
    assert measure_load([place_contiguously([4] * 4, 2)], [[0.5] * 4], fixed_count=2).rows == pytest.approx(
        5 / 6
    )


def test_memory_is_of_all_layers_together() -> None:
    """What one layer leaves uneven another makes up for."""
    first = Placement((3, 1), 2, (ExpertPart(0, 0, 3, 0), ExpertPart(1, 0, 1, 1)))
    second = Placement((3, 1), 2, (ExpertPart(0, 0, 3, 1), ExpertPart(1, 0, 1, 0)))
    assert measure_load([first, second], [[1.0, 1.0]] * 2).units == 1
    assert measure_load([first, first], [[1.0, 1.0]] * 2).units == 1.5


@pytest.mark.parametrize(
    ("num_experts", "num_ranks", "expected"),
    [(8, 4, [0, 0, 1, 1, 2, 2, 3, 3]), (5, 3, [0, 0, 1, 1, 2]), (2, 3, [0, 1]), (3, 1, [0, 0, 0])],
)
def test_contiguous_placements_have_equal_counts(
    num_experts: int, num_ranks: int, expected: list[int]
) -> None:
    placement = place_contiguously([4] * num_experts, num_ranks)
    assert [part.rank for part in placement.parts] == expected
