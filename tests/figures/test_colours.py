import itertools

import pytest

from hmoe.figures.colours import (
    AMOUNTS,
    DIFFERENCES,
    WIDTHS,
    choose_text_colour,
    compute_contrast,
    compute_luminance,
    mix_colours,
    pick_colour,
    split_colour,
)

PLACES = [i / 64 for i in range(65)]


@pytest.mark.parametrize("scale", [WIDTHS, AMOUNTS], ids=["widths", "amounts"])
def test_more_is_brighter_everywhere(scale: tuple[str, ...]) -> None:
    luminances = [compute_luminance(pick_colour(scale, place)) for place in PLACES]
    # Colours are rounded to whole numbers, by which neighbours may differ a little the wrong way.
    assert all(after > before - 1e-3 for before, after in itertools.pairwise(luminances))
    steps = [compute_luminance(colour) for colour in scale]
    assert all(left < right for left, right in itertools.pairwise(steps))


def test_differences_are_brightest_in_the_middle() -> None:
    luminances = [compute_luminance(colour) for colour in DIFFERENCES]
    assert luminances[:5] == sorted(luminances[:5])
    assert luminances[4:] == sorted(luminances[4:], reverse=True)


@pytest.mark.parametrize("ground", ["#ffffff", "#111111"])
def test_lines_stand_out_from_both_themes(ground: str) -> None:
    assert min(compute_contrast(pick_colour(WIDTHS, place), ground) for place in PLACES) >= 3


@pytest.mark.parametrize("scale", [AMOUNTS, DIFFERENCES], ids=["amounts", "differences"])
def test_text_on_areas_is_readable(scale: tuple[str, ...]) -> None:
    areas = [pick_colour(scale, place) for place in PLACES]
    assert min(compute_contrast(choose_text_colour(area), area) for area in areas) >= 4.5


def test_luminance_and_contrast_are_those_of_wcag() -> None:
    assert compute_contrast("#ffffff", "#000000") == pytest.approx(21)
    assert compute_contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.005)  # as WCAG's own examples
    assert compute_luminance("#ff0000") == pytest.approx(0.2126)


def test_places_on_a_scale() -> None:
    assert [pick_colour(WIDTHS, place) for place in (-1, 0, 1, 2)] == [*WIDTHS[:1] * 2, *WIDTHS[-1:] * 2]
    assert [pick_colour(WIDTHS, i / 8) for i in range(9)] == list(WIDTHS)
    assert mix_colours("#000000", "#ff8000", 0.5) == "#804000"
    assert split_colour("#0a0b0c") == (10, 11, 12)
