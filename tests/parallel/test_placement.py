"""Experts are placed as evenly as they can be: judged by an exact solver, by planted solutions, and by bounds."""

import random
from collections.abc import Sequence

import pytest

import hmoe
from hmoe.config import recipes
from hmoe.errors import ConfigError
from hmoe.parallel.cuts import cut_experts
from hmoe.parallel.placement import (
    choose_placements,
    is_even,
    keep_ranks,
    place_all_experts,
    place_experts,
    rename_ranks,
)
from hmoe.specs.placement import Placement, measure_balance, place_contiguously


def draw_instance(generator: random.Random, most_experts: int = 16) -> tuple[list[int], list[float], int]:
    """Widths, frequencies and processes, as unequal as models have them or more."""
    num_experts, num_ranks = generator.randint(2, most_experts), generator.randint(2, 8)
    total = 64 * num_experts**2
    widths = generator.choice(
        [
            list(hmoe.arithmetic(total, num_experts)),
            list(hmoe.geometric(total, num_experts, ratio=30)),
            [generator.randint(16, 2000) for _ in range(num_experts)],
        ]
    )
    tilt = generator.random()  # small experts are chosen more often
    return widths, [generator.gammavariate(3, 1) * h**-tilt for h in widths], num_ranks


def solve_exactly(widths: Sequence[int], frequencies: Sequence[float], num_ranks: int) -> float:
    """The least that the fullest process can have, of memory or work, by integer programming."""
    scipy = pytest.importorskip("scipy.optimize")
    numpy = pytest.importorskip("numpy")
    memory = numpy.array(widths, float)
    work = memory * numpy.array(frequencies)
    memory, work = memory * num_ranks / memory.sum(), work * num_ranks / work.sum()
    num_variables = len(widths) * num_ranks + 1  # whether expert i is on process r, and the most of a process
    rows, lows, highs = [], [], []
    for i in range(len(widths)):
        row = numpy.zeros(num_variables)
        row[i * num_ranks : (i + 1) * num_ranks] = 1
        rows, lows, highs = [*rows, row], [*lows, 1], [*highs, 1]
    for rank in range(num_ranks):
        for shares in (memory, work):
            row = numpy.zeros(num_variables)
            row[rank : num_variables - 1 : num_ranks], row[-1] = shares, -1
            rows, lows, highs = [*rows, row], [*lows, -numpy.inf], [*highs, 0]
    most, is_whole = numpy.ones(num_variables), numpy.ones(num_variables)
    most[-1], is_whole[-1] = num_ranks, 0
    for k, i in enumerate(numpy.argsort(-numpy.maximum(memory, work))[:num_ranks]):
        most[i * num_ranks + k + 1 : (i + 1) * num_ranks] = (
            0  # processes are alike: the k-th largest is on one of k
        )
    result = scipy.milp(
        numpy.eye(num_variables)[-1],
        constraints=scipy.LinearConstraint(numpy.array(rows), lows, highs),
        bounds=scipy.Bounds(numpy.zeros(num_variables), most),
        integrality=is_whole,
        options={"mip_rel_gap": 1e-4, "time_limit": 30},
    )
    # Without a proof of the optimum its bound judges, which is no larger.
    return float(result.fun if result.status == 0 else result.mip_dual_bound)


@pytest.mark.parametrize("count", [12, pytest.param(300, marks=pytest.mark.slow)])
def test_whole_experts_are_as_even_as_an_exact_solver_finds(count: int) -> None:
    generator, gaps = random.Random(1), []
    for _ in range(count):
        widths, frequencies, num_ranks = draw_instance(generator, 16 if count > 12 else 11)
        placement = place_experts(widths, num_ranks, frequencies)
        gaps.append(
            measure_balance(placement, frequencies).worst / solve_exactly(widths, frequencies, num_ranks) - 1
        )
    print(
        f"{count} instances: {sum(gaps) / count:.3%} above the optimum in the mean, {max(gaps):.3%} at most"
    )
    assert sum(gaps) / count <= 0.02
    assert max(gaps) <= 0.05


def test_a_planted_even_placement_is_found() -> None:
    """Parts of equal units and equal work, cut at random, are put together again."""
    generator = random.Random(2)
    for _ in range(10):
        num_ranks, widths, work = generator.randint(2, 5), [], []
        for _ in range(num_ranks):
            cuts = sorted(generator.sample(range(1, 60), 3)), sorted(generator.sample(range(1, 60), 3))
            pieces = [[b - a for a, b in zip([0, *c], [*c, 60], strict=True)] for c in cuts]
            widths, work = widths + pieces[0], work + pieces[1]
        frequencies = [w / h for w, h in zip(work, widths, strict=True)]
        # Four pieces each: an exact fit is one in many, and near ones are all that a search promises.
        assert measure_balance(place_experts(widths, num_ranks, frequencies), frequencies).worst < 1.06


def test_the_paper_s_figure_pairs_large_experts_with_small_ones() -> None:
    """Pairs i and N + 1 - i of an arithmetic set are equal; contiguous placement is 1.375 times even."""
    widths = hmoe.arithmetic(12288, 8)
    placement = place_experts(widths, 4)
    pairs = [sorted(part.expert for part in placement.list_parts(rank)) for rank in range(4)]
    assert sorted(pairs) == [[0, 7], [1, 6], [2, 5], [3, 4]]
    assert measure_balance(placement, [1.0] * 8) == (1, 1)
    assert measure_balance(place_contiguously(widths, 4), [1.0] * 8).memory == pytest.approx(1.375)


def test_a_solution_is_the_same_everywhere_and_every_time() -> None:
    widths, frequencies, num_ranks = draw_instance(random.Random(3))
    first = place_experts(widths, num_ranks, frequencies, cut=True, replicas=1)
    random.seed(5)
    assert place_experts(widths, num_ranks, frequencies, cut=True, replicas=1) == first


def test_cuts_make_any_experts_even() -> None:
    """Memory within 1%, work within 5%, by at most 2 (R - 1) cuts, where a process has units enough to round."""
    generator = random.Random(4)
    for _ in range(150):
        widths, frequencies, num_ranks = draw_instance(generator)
        widths = [width * (1 + 400 * num_ranks // sum(widths)) for width in widths]
        placement = place_experts(widths, num_ranks, frequencies, cut=True)
        balance = measure_balance(placement, frequencies)
        assert placement.num_cuts <= 2 * (num_ranks - 1)
        whole = measure_balance(place_experts(widths, num_ranks, frequencies), frequencies)
        assert is_even(whole) == (placement.num_cuts == 0)
        assert (balance.memory <= 1.01, balance.compute <= 1.05) == (True, True), balance


def test_eight_experts_on_four_processes_are_even_only_when_cut() -> None:
    widths, frequencies = hmoe.arithmetic(12288, 8), [8.0, 4.0, 2.0, 1.5, 1.2, 1.1, 0.9, 0.8]
    assert measure_balance(place_experts(widths, 4, frequencies), frequencies).worst > 1.3
    cut = place_experts(widths, 4, frequencies, cut=True)
    assert measure_balance(cut, frequencies).worst < 1.01
    # Kernels like round numbers: what can be is at multiples of 16.
    assert all(part.first_unit % 16 == 0 for part in cut.parts)


def test_one_process_and_more_processes_than_experts() -> None:
    assert place_experts((5, 3), 1).list_rows(0) == [range(5), range(5, 8)]
    lonely = place_experts((5, 3), 4)
    assert sorted(lonely.count_units(rank) for rank in range(4)) == [0, 0, 3, 5]
    cut = place_experts((500, 300), 4, cut=True)
    assert [cut.count_units(rank) for rank in range(4)] == [200] * 4
    assert sorted(cut_experts([3], [1.0], 4)[0]) == [0, 1, 1, 1]  # fewer units than processes


def test_experts_nobody_chose_are_placed_by_their_size() -> None:
    placement = place_experts((4, 4, 4, 4), 2, [0, 0, 0, 0])
    assert [placement.count_units(rank) for rank in range(2)] == [8, 8]
    cold = place_experts((4, 4, 4, 4), 2, [1, 1, 0, 0], cut=True)
    assert measure_balance(cold, [1, 1, 0, 0]) == (1, 1)


def test_numbers_of_other_libraries_and_of_any_size_are_taken() -> None:
    numpy = pytest.importorskip("numpy")
    placement = place_experts(numpy.array([4, 6, 8, 2]), 2, numpy.array([1.0, 2.0, 0.5, 4.0]), cut=True)
    assert placement == place_experts((4, 6, 8, 2), 2, (1, 2, 0.5, 4), cut=True)
    assert Placement.from_plain(placement.to_plain()) == placement
    for frequencies in ([1e308, 1e308, 1.0], [5e-324, 1e-323, 0.0], [0.1] * 3, [1e-300, 1.0, 1e300]):
        for num_ranks in (2, 3, 5):
            cut = place_experts((7, 11, 13), num_ranks, frequencies, cut=True)
            assert max(cut.count_units(rank) for rank in range(num_ranks)) <= 31 / num_ranks + 1


def test_replicas_are_the_experts_with_most_tokens_per_unit() -> None:
    placement = place_experts((64, 16, 32, 64), 2, [1, 3, 2, 9], replicas=2)
    assert placement.everywhere == (1, 3)
    assert {part.expert for part in placement.parts} == {0, 2}
    assert place_experts((64, 16, 32, 64), 2, replicas=[2]).everywhere == (2,)
    assert place_experts((4, 4), 2, replicas=2).parts == ()


def test_of_alike_placements_the_one_with_less_of_the_other_measure_is_taken() -> None:
    """Four experts have all the work: how the other sixty lie changes no work, but memory can be even."""
    widths = [64 * (1 + i % 4) for i in range(64)]
    frequencies = [1.0] * 4 + [0.0] * 60
    assert measure_balance(place_experts(widths, 8, frequencies), frequencies) == (1.0, pytest.approx(3.2))


def test_few_cuts_are_made_where_few_suffice() -> None:
    """One expert with a seventh of all work on eight processes: cutting it is enough, or nearly."""
    for seed in range(6):
        generator = random.Random(seed)
        widths = [(64, 96, 160, 320, 640)[i % 5] for i in range(64)]
        work = [generator.gammavariate(1, 1) for _ in widths]
        work[4] = 0.16 * sum(work)
        frequencies = [each / width for each, width in zip(work, widths, strict=True)]
        assert not is_even(measure_balance(place_experts(widths, 8, frequencies), frequencies))
        cut = place_experts(widths, 8, frequencies, cut=True)
        assert is_even(measure_balance(cut, frequencies))
        assert cut.num_cuts <= 3  # of the 14 that make any experts even


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("num_ranks", [8, 16, 32])
def test_very_skewed_loads_are_even_but_for_single_units(power: float, num_ranks: int) -> None:
    """Experts of five widths, loads by Zipf: a process takes whole units, the hottest of which is its limit."""
    generator = random.Random(7)
    ranking = list(range(64))
    generator.shuffle(ranking)
    widths = [(64, 96, 160, 320, 640)[i % 5] for i in range(64)]
    frequencies = [(place + 1) ** -power / width for place, width in zip(ranking, widths, strict=True)]
    placement = place_experts(widths, num_ranks, frequencies, cut=True)
    balance = measure_balance(placement, frequencies)
    mean = sum(f * h for f, h in zip(frequencies, widths, strict=True)) / num_ranks
    assert placement.num_cuts <= 2 * (num_ranks - 1)
    assert balance.memory <= 1.01
    assert balance.compute <= max(1.05, 1.01 + 2 * max(frequencies) / mean)


def test_layers_make_up_for_each_other() -> None:
    """Each layer alone leaves a process with more memory; of all layers together it is even."""
    frequencies = [[3.0, 1.0, 1.0]] * 6
    layers = place_all_experts((30, 20, 10), 2, frequencies)
    units = [sum(layer.count_units(rank) for layer in layers) for rank in range(2)]
    assert all(
        layer.count_units(0) != layer.count_units(1)
        for layer in place_all_experts((30, 20, 11), 2, frequencies)
    )
    assert max(units) <= 1.02 * min(units)


def test_renamed_ranks_keep_most_units_where_they_were() -> None:
    generator = random.Random(6)
    for _ in range(30):
        widths, frequencies, num_ranks = draw_instance(generator)
        before = place_experts(widths, num_ranks, frequencies, cut=generator.random() < 0.5)
        order = list(range(num_ranks))
        generator.shuffle(order)
        assert keep_ranks(rename_ranks(before, order), before) == before
        after = place_experts(widths, num_ranks, [f * generator.uniform(0.5, 2) for f in frequencies])
        assert count_moved(keep_ranks(after, before), before) <= count_moved(after, before)


def count_moved(after: Placement, before: Placement) -> int:
    rows = [
        [{row for each in p.list_rows(rank) for row in each} for rank in range(p.num_ranks)]
        for p in (after, before)
    ]
    return sum(len(new - old) for new, old in zip(*rows, strict=True))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (((4, 4), 2, [1.0]), "1 frequencies for 2 experts"),
        (((4, 4), 2, [1.0, -1.0]), r"expert 1 has frequency -1\.0, must be 0 or more"),
        (((4, 4), 2, [1.0, float("nan")]), "expert 1 has frequency nan"),
        (((4, 0), 2), r"widths = \(4, 0\), must be integers of 1 hidden unit or more"),
        (((4, 4), 0), "0 processes, must be 1 or more"),
    ],
)
def test_what_cannot_be_placed_is_named(arguments: tuple[object, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        place_experts(*arguments)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"must be numbers of the 2 experts"):
        place_experts((4, 4), 2, replicas=[2])
    with pytest.raises(ConfigError, match="replicas = 3, must be from 0 to 2, the experts"):
        place_experts((4, 4), 2, replicas=3)


def test_a_recipe_says_how_its_experts_are_placed() -> None:
    placed = ["parallel.experts=expert_parallel"]
    config = recipes.read_recipe("tiny", placed)[1]
    assert config.model.moe is not None
    assert len(choose_placements(config, 4)) == config.model.layers
    ranks = recipes.read_recipe("tiny", [*placed, "parallel.expert_ranks=2"])[1]
    assert {placement.num_ranks for placement in choose_placements(ranks, 4)} == {2}
    contiguous = recipes.read_recipe("tiny", [*placed, "parallel.expert_placement=contiguous"])[1]
    assert choose_placements(contiguous, 4)[0] == place_contiguously(config.model.moe.expert_widths, 4)
    # Zero-computation experts have no process.
    zero = recipes.read_recipe("tiny-moepp", placed)[1]
    assert zero.model.moe is not None
    frequencies = [[1.0] * len(zero.model.moe.routed_widths)] * zero.model.layers
    assert choose_placements(zero, 2, frequencies)[0].widths == zero.model.moe.expert_widths
