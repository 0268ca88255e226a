"""Twins are redundant and nothing else is; every number of the table by hand."""

import itertools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hmoe import ConfigError
from hmoe.analyze import expert_outputs, redundancy
from hmoe.analyze.expert_inputs import capture_expert_inputs, run_expert
from hmoe.analyze.planted_models import build_planted_model, plant_windows
from hmoe.analyze.random_experts import RandomExperts
from hmoe.analyze.redundancy import measure_redundancy
from hmoe.analyze.traced_text import Row
from hmoe.config.recipes import check_model
from hmoe.model.transformer import build_transformer
from hmoe.statistics.linear_cka import compute_linear_cka
from hmoe.statistics.unit_matching import match_units
from hmoe.statistics.wasserstein import measure_sliced_distance
from tests.analyze.helpers import build_small_model
from tests.analyze.test_expert_inputs import draw_windows

KEYS = [
    "layer", "expert_a", "expert_b", "width_a", "width_b", "cka", "cka_null", "output_cosine", "output_cosine_null",
    "output_distance", "null_output_distance", "weight_cosine", "weight_cosine_null", "tokens", "is_redundant",
]  # fmt: skip


def list_redundant(rows: list[Row]) -> list[tuple[int, int, int]]:
    return [(row["layer"], row["expert_a"], row["expert_b"]) for row in rows if row["is_redundant"]]


def check_plain(rows: list[Row]) -> None:
    """Plain numbers or None, and no NaN."""
    for row in rows:
        assert list(row) == KEYS
        assert all(type(value) in (int, float, bool, type(None)) for value in row.values())
        assert all(math.isfinite(value) for value in row.values() if value is not None)


@pytest.mark.parametrize(
    "moe",
    [
        {},
        {"router": {"name": "top_p", "p": 0.6}},
        {"router": {"name": "top_k", "k": 1, "renormalize": False}},
        {"router": {"name": "expert_choice"}},
        {"zero": {"null": 1, "copy": 1, "constant": 1}, "shared": 8},
        {"hyper": {"dim": 4}},
        {"widths": [8, 16, 4, 8]},
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_twins_are_found_and_only_they(moe: dict[str, Any], seed: int) -> None:
    planted = build_planted_model("twins", seed, moe)
    rows = measure_redundancy(planted.model, plant_windows(planted, seed, 8))["redundancy"]
    assert list_redundant(rows) == [(1, *planted.truth["experts"])]
    (twins,) = [row for row in rows if row["is_redundant"]]
    assert [twins[name] for name in ("cka", "output_cosine", "weight_cosine")] == pytest.approx([1, 1, 1])
    check_plain(rows)


def build_random(seed: int) -> tuple[Any, list[Any]]:
    """A random model and text: widths from 1, few and many tokens, inputs with and without a common direction."""
    draw = np.random.default_rng(seed)
    widths = draw.integers(1, 60, draw.integers(2, 7)).tolist()
    dim = int(draw.choice([16, 32, 64]))
    moe = {"widths": widths, "router": {"name": "top_k", "k": 1}}
    model = build_transformer(
        check_model(dict(dim=dim, layers=2, heads=2, vocab=40, context=32, moe=moe)), seed
    )
    if draw.random() < 0.5:
        with torch.no_grad():
            model.embed.weight += 0.5 * torch.randn(dim, generator=torch.manual_seed(seed)) * dim**-0.5
    return model, [(draw.integers(40, size=20), np.full(20, 0)) for _ in range(draw.integers(1, 8))]


def count_flags(seeds: range) -> int:
    num_flags = 0
    for seed in seeds:
        model, windows = build_random(seed)
        rows = measure_redundancy(model, windows, seed=seed)["redundancy"]
        check_plain(rows)
        num_flags += len(list_redundant(rows))
    return num_flags


def test_random_models_have_no_redundant_experts() -> None:
    assert count_flags(range(15)) == 0


@pytest.mark.slow
def test_two_hundred_random_models_have_no_redundant_experts() -> None:
    assert count_flags(range(200)) == 0


@pytest.mark.parametrize("name", ["top_k", "top_p"])
def test_numbers_by_hand(name: str) -> None:
    model, windows = build_small_model(router={"name": name}), draw_windows(20, 20, 20)
    rows = measure_redundancy(model, windows)["redundancy"]
    captured = capture_expert_inputs(model, windows)
    assert [(r["layer"], r["expert_a"], r["expert_b"]) for r in rows] == [
        (layer, *pair) for layer in (0, 1) for pair in itertools.combinations(range(4), 2)
    ]
    for row in rows:
        layer: Any = model.blocks[(0, 2)[row["layer"]]].ffn
        inputs = captured[row["layer"]]
        pair = (row["expert_a"], row["expert_b"])
        assert (row["width_a"], row["width_b"]) == tuple(layer.widths[expert] for expert in pair)
        assert row["tokens"] == len(inputs.x_TD) == 57
        outputs = [run_expert(layer.expert(expert), inputs.x_TD).double().numpy() for expert in pair]
        assert row["cka"] == pytest.approx(compute_linear_cka(*outputs), rel=1e-5)
        cosines = [
            float(u @ v) / math.sqrt(float(u @ u) * float(v @ v)) for u, v in zip(*outputs, strict=True)
        ]
        assert row["output_cosine"] == pytest.approx(sum(cosines) / 57, abs=1e-6)
        served = [output[inputs.chosen_TE[:, e].numpy()] for output, e in zip(outputs, pair, strict=True)]
        assert row["output_distance"] == pytest.approx(measure_sliced_distance(*served), rel=1e-5)
        units: list[Any] = [torch.cat([g, u, d.T], 1).numpy() for g, u, d in map(layer.expert, pair)]
        assert row["weight_cosine"] == pytest.approx(match_units(units[0], units[1]), rel=1e-5)
        assert 0 < row["cka_null"] < 1
        assert abs(row["weight_cosine"] - row["weight_cosine_null"]) < 0.25
        assert not row["is_redundant"]


def test_nulls_are_of_random_experts_between_widths_too() -> None:
    """Of many widths some are drawn, and the others lie between: as if all had been drawn, up to the draws."""
    x_TD = torch.randn(60, 24, generator=torch.Generator().manual_seed(0))
    widths = [40, *range(2, 40, 2), 40]
    nulls = RandomExperts(24, 4, 0)
    some, _ = expert_outputs._average_nulls(widths, x_TD, nulls)
    assert some.shape == (21, 21)
    np.testing.assert_allclose(some, some.T, rtol=1e-12)
    for a, b in [(0, 20), (1, 1), (1, 20), (7, 12)]:
        draws = [
            compute_linear_cka(*(run_expert(nulls.draw_expert(widths[i]), x_TD).numpy() for i in (a, b)))
            for _ in range(40)
        ]
        assert some[a, b] == pytest.approx(np.mean(draws), abs=5 * float(np.std(draws)) / 3**0.5)


def test_of_many_widths_twelve_are_drawn_from_the_narrowest_to_the_widest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x_TD, nulls = torch.randn(5, 24, generator=torch.Generator().manual_seed(0)), RandomExperts(24, 4, 0)
    drawn: list[int] = []
    draw = nulls.draw_expert
    monkeypatch.setattr(nulls, "draw_expert", lambda width: drawn.append(width) or draw(width))
    expert_outputs._average_nulls([40, *range(2, 40, 2)], x_TD, nulls)
    kinds = drawn[:12]
    assert drawn == kinds * 2 * 3
    assert (kinds[0], kinds[-1], len(set(kinds))) == (2, 40, 12)
    assert max(b - a for a, b in itertools.pairwise(kinds)) <= 4


def test_tokens_for_which_an_expert_gives_nothing_have_no_cosine() -> None:
    outputs = [np.array([[1.0, 0], [0, 0], [1, 1]]), np.array([[1.0, 0], [5, 5], [1, 0]]), np.zeros((3, 2))]
    cosines = expert_outputs._average_cosines(outputs)
    assert cosines[0, 1] == cosines[1, 0] == pytest.approx((1 + 0.5**0.5) / 2)
    assert np.isnan(cosines[2]).all()


def test_outputs_that_serve_nobody_have_no_distance() -> None:
    outputs, chosen_TE = [np.ones((3, 2)), np.ones((3, 2))], np.zeros((3, 2), bool)
    for table in expert_outputs._measure_distances(outputs, chosen_TE, np.random.default_rng(0)):
        assert np.isnan(table).all()


def test_weights_are_matched_by_some_units_against_random_experts_of_both_widths(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planted = build_planted_model("noise", 0, {"widths": [8, 16, 12]})
    monkeypatch.setattr(redundancy, "match_units", lambda first, second, most: len(first) + most)
    monkeypatch.setattr(RandomExperts, "get_cosine", lambda self, a, b: a / 100 + b / 10000)
    rows = measure_redundancy(planted.model, plant_windows(planted, 0, 1))["redundancy"]
    assert [row["weight_cosine_null"] for row in rows[:3]] == pytest.approx([0.0816, 0.0812, 0.1612])
    assert [row["weight_cosine"] for row in rows[:3]] == [8 + 512, 8 + 512, 16 + 512]


def test_weights_of_the_most_alike_are_matched_and_twins_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redundancy, "MATCHED_PAIRS", 3)
    planted = build_planted_model("twins", 4)
    rows = measure_redundancy(planted.model, plant_windows(planted, 4, 4))["redundancy"]
    assert list_redundant(rows) == [(1, *planted.truth["experts"])]
    for layer in (0, 1):
        own = [row for row in rows if row["layer"] == layer]
        own.sort(key=lambda row: -max(row["cka"], row["output_cosine"]))
        assert [row["weight_cosine"] is not None for row in own] == [True] * 3 + [False] * 7
        assert all((row["weight_cosine"] is None) == (row["weight_cosine_null"] is None) for row in own)


def test_the_same_function_by_other_weights_is_redundant() -> None:
    """An expert that is another one with each unit split in two: weights differ in width, outputs do not."""
    planted = build_planted_model("noise", 0, {"widths": [8, 16, 12]})
    layer: Any = planted.model.blocks[1].ffn
    for own, other in zip(layer.expert(1), layer.expert(0), strict=True):
        own.copy_(torch.cat([other, other], 0) if own.shape[0] == 16 else torch.cat([other, other], 1) / 2)
    rows = measure_redundancy(planted.model, plant_windows(planted, 0, 4))["redundancy"]
    assert list_redundant(rows) == [(1, 0, 1)]


def compare_planted_pair(change: str) -> Row:
    """The row of two experts of which the second is the first, changed."""
    planted = build_planted_model("noise", 0, {"widths": [32, 32, 12]})
    layer: Any = planted.model.blocks[1].ffn
    (gate, up, down), (own_gate, own_up, own_down) = layer.expert(0), layer.expert(1)
    down.mul_(0.3)
    first_half, most = slice(0, 16), slice(0, 20)
    if change == "half of the units silent in each":
        own_gate.copy_(gate)
        own_up.copy_(up)
        own_down.copy_(down)
        down[:, first_half] = 0.0
        own_down[:, 16:] = 0.0
    elif change == "most units":
        own_down.mul_(0.3)
        own_gate[most], own_up[most] = gate[most], up[most]
        own_down[:, most] = down[:, most]
    else:
        signs = {"both signs": (-1, -1), "sign of down": (1, -1), "sign of up": (-1, 1)}[change]
        own_gate.copy_(gate)
        own_up.copy_(signs[0] * up)
        own_down.copy_(signs[1] * down)
    rows = measure_redundancy(planted.model, plant_windows(planted, 0, 8))["redundancy"]
    return next(row for row in rows if (row["layer"], row["expert_a"], row["expert_b"]) == (1, 0, 1))


@pytest.mark.parametrize(
    ("change", "cosine", "cka", "is_weight_alike", "expected"),
    [
        ("both signs", (0.999, 1.001), (0.999, 1.001), False, True),  # by outputs alone: weights show nothing
        ("sign of down", (-1.001, -0.999), (0.999, 1.001), True, True),  # by CKA and weights alone
        ("sign of up", (-1.001, -0.999), (0.999, 1.001), False, False),  # CKA alone is not enough
        ("half of the units silent in each", (-0.5, 0.5), (0, 0.8), True, False),  # nor are weights
        ("most units", (0.5, 0.9), (0, 0.9), True, False),  # nor outputs that are somewhat alike
    ],
)
def test_each_half_of_the_rule_by_a_planted_pair(
    change: str, cosine: tuple[float, float], cka: tuple[float, float], is_weight_alike: bool, expected: bool
) -> None:
    row = compare_planted_pair(change)
    assert cosine[0] <= row["output_cosine"] <= cosine[1]
    assert cka[0] <= row["cka"] <= cka[1]
    null = row["weight_cosine_null"]
    assert (row["weight_cosine"] > (1 + null) / 2) is is_weight_alike
    assert row["is_redundant"] is expected


@pytest.mark.parametrize(
    ("cosine", "cka", "cka_null", "weight_cosine", "expected"),
    [
        (0.91, 0.1, 0.2, 0.0, True),
        (0.91, None, None, None, True),
        (0.9, 0.1, 0.2, 0.0, False),
        (None, 0.91, 0.2, 0.61, True),
        (0.0, 0.91, None, 0.61, True),
        (0.0, 0.9, 0.2, 0.61, False),
        (0.0, 0.91, 0.92, 0.61, False),
        (0.0, 0.93, 0.92, 0.61, True),
        (0.0, 0.91, 0.2, 0.6, False),  # half way from 0.2 to 1
        (0.0, None, 0.2, 0.61, False),
        (0.0, 0.91, 0.2, None, False),
        (None, None, None, None, False),
    ],
)
def test_the_rule_at_its_limits(
    cosine: float | None,
    cka: float | None,
    cka_null: float | None,
    weight_cosine: float | None,
    expected: bool,
) -> None:
    row: Row = {"output_cosine": cosine, "cka": cka, "cka_null": cka_null}
    row |= {"weight_cosine": weight_cosine, "weight_cosine_null": None if weight_cosine is None else 0.2}
    assert redundancy._is_redundant(row) is expected


def test_experts_that_give_nothing_or_serve_nobody_have_no_numbers() -> None:
    planted = build_planted_model("dead", 0)
    dead = planted.truth["expert"]
    silent = (dead + 1) % 5
    planted.model.blocks[1].ffn.expert(silent)[2].zero_()  # type: ignore[union-attr,operator]
    rows = measure_redundancy(planted.model, plant_windows(planted, 0, 6))["redundancy"]
    check_plain(rows)
    for row in rows:
        pair = {row["expert_a"], row["expert_b"]} if row["layer"] == 1 else set()
        assert (row["output_distance"] is None) == (dead in pair)
        assert (row["cka"] is None) == (silent in pair)
        assert (row["output_cosine"] is None) == (silent in pair)
    assert not list_redundant(rows)


def test_small_cases() -> None:
    one_expert = build_planted_model("noise", 0, {"widths": [8], "router": {"name": "top_k", "k": 1}})
    assert measure_redundancy(one_expert.model, plant_windows(one_expert, 0, 2)) == {"redundancy": []}
    planted = build_planted_model("noise", 0)
    assert measure_redundancy(planted.model, []) == {"redundancy": []}
    rows = measure_redundancy(planted.model, [(np.array([5]), np.array([0]))])["redundancy"]
    check_plain(rows)
    assert {(row["tokens"], row["cka"], row["is_redundant"]) for row in rows} == {(1, None, False)}
    dense = build_transformer(check_model(dict(dim=16, layers=1, heads=2, vocab=40, ffn=8)), 0)
    with pytest.raises(ConfigError, match="dense and has no experts"):
        measure_redundancy(dense, plant_windows(planted, 0, 2))


def test_the_sample_and_the_seed() -> None:
    planted = build_planted_model("noise", 0)
    windows = plant_windows(planted, 0, 4)
    first, again, other = (
        measure_redundancy(planted.model, windows, most_tokens=50, seed=seed)["redundancy"]
        for seed in (0, 0, 1)
    )
    assert first == again
    assert {row["tokens"] for row in first} == {50}
    fixed = [name for name in KEYS if "null" not in name]
    assert [[row[name] for name in fixed] for row in first] == [
        [row[name] for name in fixed] for row in other
    ]
    assert all(a["cka_null"] != b["cka_null"] for a, b in zip(first, other, strict=True))


def test_steps_are_reported() -> None:
    planted, steps = build_planted_model("noise", 0), []
    measure_redundancy(planted.model, plant_windows(planted, 0, 2), lambda *step: steps.append(step))
    assert list(dict.fromkeys(steps)) == [(0, 2), (1, 2), (2, 2)]


def test_the_sample_is_as_large_as_memory_and_products_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    planted = build_planted_model("noise", 0)  # 5 experts of 64 numbers: 320 of a token
    assert redundancy._count_rows(planted.model) == 2**26 // 320
    for products, expected in ((320 * 1001, 31), (320**2 * 50, 126), (320**2 * 1000, 2000), (1, 1)):
        monkeypatch.setattr(redundancy, "_MOST_PRODUCTS", products)
        assert redundancy._count_rows(planted.model) == expected
    monkeypatch.setattr(redundancy, "_MOST_PRODUCTS", 2**35)
    monkeypatch.setattr(redundancy, "MOST_NUMBERS", 320 * 21)
    rows = measure_redundancy(planted.model, plant_windows(planted, 0, 2))["redundancy"]
    assert {row["tokens"] for row in rows} == {21}


def test_random_experts_are_those_of_a_new_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_transformer(
        check_model(
            dict(
                dim=64,
                layers=3,
                heads=2,
                vocab=40,
                moe={"widths": [300, 20], "router": {"name": "top_k", "k": 1}},
            )
        ),
        0,
    )
    nulls = RandomExperts(64, 2 * 3, 0)
    layer: Any = model.blocks[0].ffn
    drawn = nulls.draw_expert(300)
    assert not torch.equal(drawn[0], drawn[1])
    for weight, own in zip(drawn, layer.expert(0), strict=True):
        assert weight.shape == own.shape
        assert float(weight.std()) == pytest.approx(float(own.std()), rel=0.03)  # of 19,200 numbers
    seen: list[tuple[int, ...]] = []
    monkeypatch.setattr(redundancy, "RandomExperts", lambda *arguments: seen.append(arguments) or nulls)
    measure_redundancy(model, [(np.array([1, 2, 3]), np.zeros(3))], seed=7)
    assert seen == [(64, 6, 7)]


def test_the_most_alike_are_so_by_one_of_two_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has neither comes last, and of equals the first ones are taken."""
    planted, nan = build_planted_model("noise", 0, {"widths": [8, 8, 8, 8]}), math.nan
    pairs = list(itertools.combinations(range(4), 2))

    def list_matched(cka: list[float], cosine: list[float]) -> list[int]:
        names = ("cka", "cosine", "cka_null", "cosine_null", "distance", "distance_null")
        likeness = SimpleNamespace(**{name: np.full((4, 4), nan) for name in names})
        for pair, *values in zip(pairs, cka, cosine, strict=True):
            likeness.cka[pair], likeness.cosine[pair] = values
        monkeypatch.setattr(redundancy, "compare_outputs", lambda *_: likeness)
        rows = measure_redundancy(planted.model, plant_windows(planted, 0, 1))["redundancy"]
        return [place for place, row in enumerate(rows[:6]) if row["weight_cosine"] is not None]

    monkeypatch.setattr(redundancy, "MATCHED_PAIRS", 2)
    assert list_matched([0.1, 0.8, 0.2, 0.3, 0.4, nan], [0.0, 0.0, 0.9, 0.5, -1.0, nan]) == [1, 2]
    assert list_matched([nan, nan, 0.1, nan, 0.2, 0.3], [nan, -0.9, nan, nan, -0.8, -0.7]) == [4, 5]
    assert list_matched([nan, nan, nan, nan, nan, 0.3], [nan, nan, -0.9, nan, nan, -0.7]) == [2, 5]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_half_precision(dtype: torch.dtype) -> None:
    planted = build_planted_model("twins", 2)
    rows = measure_redundancy(planted.model.to(dtype), plant_windows(planted, 0, 3))["redundancy"]
    check_plain(rows)
    assert list_redundant(rows) == [(1, *planted.truth["experts"])]


def test_the_null_of_two_widths_is_drawn_once_whichever_comes_first() -> None:
    nulls = RandomExperts(16, 4, 0)
    first = nulls.get_cosine(4, 30)
    assert nulls.get_cosine(30, 4) == nulls.get_cosine(4, 30) == first
    assert first > nulls.get_cosine(4, 4)  # more units to choose from
