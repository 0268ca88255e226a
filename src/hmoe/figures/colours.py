"""Colours of all figures, as hexadecimal words: a scale for width, one for amounts, one for differences.

Everything is told twice: each scale is ordered by luminance too, so that it reads in grey and with any colour vision.
"""

from collections.abc import Sequence

WIDTHS = (  # narrow to wide, dark to bright; all 3:1 or more against white and against #111
    "#0263b2", "#4f5dca", "#795dba", "#955daa", "#ab5e98", "#bd6183", "#d26268", "#df673e", "#d9790a",
)  # fmt: skip
AMOUNTS = (  # little to much: cividis (Nuñez, Anderton, Renslow 2018), for areas with a frame
    "#00224e", "#1a386f", "#434e6c", "#61656f", "#7d7c78", "#9b9476", "#bcae6c", "#dec958", "#fee838",
)  # fmt: skip
DIFFERENCES = (  # less than the null, the null, more
    "#0254a5", "#3170bb", "#6692ca", "#a1bbdd", "#ededed", "#d8b299", "#c08156", "#ac5804", "#854304",
)  # fmt: skip
ON_LIGHT, ON_DARK = "#000000", "#ffffff"  # text on areas; on middle grey a softer black has less than 4.5:1


def pick_colour(scale: Sequence[str], place: float) -> str:
    """Return the colour at a place from 0 to 1 of a scale, mixed from its neighbours; places outside are its ends."""
    position = min(max(place, 0.0), 1.0) * (len(scale) - 1)
    left = min(int(position), len(scale) - 2)
    return mix_colours(scale[left], scale[left + 1], position - left)


def mix_colours(first: str, second: str, share: float) -> str:
    """Return a mixture of two colours; `share` is that of the second."""
    pairs = zip(split_colour(first), split_colour(second), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def split_colour(colour: str) -> tuple[int, int, int]:
    """Return red, green and blue of a colour, each from 0 to 255."""
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue


def compute_luminance(colour: str) -> float:
    """Return the relative luminance of a colour as WCAG 2 defines it, from 0 to 1."""
    parts = [part / 255 for part in split_colour(colour)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def compute_contrast(first: str, second: str) -> float:
    """Return the contrast of two colours as WCAG 2 defines it, from 1 to 21."""
    dark, bright = sorted((compute_luminance(first), compute_luminance(second)))
    return (bright + 0.05) / (dark + 0.05)


def choose_text_colour(area: str) -> str:
    """Return the colour of text that is read best on an area: black or white, always 4.5:1 or more."""
    return max((ON_LIGHT, ON_DARK), key=lambda text: compute_contrast(text, area))
