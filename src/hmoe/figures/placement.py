"""A picture of placements (HMoE figure 9): processes side by side, in each its experts, as wide as they are large."""

from collections.abc import Sequence

from hmoe.figures.colours import choose_text_colour, pick_colour
from hmoe.figures.svg import escape_xml
from hmoe.specs.placement import Placement, list_work, measure_balance

_COLUMN, _GAP, _HEIGHT, _TOP = 84, 14, 260, 64
_SCALE = ("#dce9f5", "#8db8dc", "#3a7ab8", "#123f6d")  # from seldom to often activated
_WORK = "#c2571a"


def draw_placement(panels: Sequence[tuple[str, Placement]], frequencies: Sequence[float]) -> str:
    """Return an SVG of placements of the same experts, one panel with its name above the other.

    A process is a column of its experts. The height of each is its hidden units, its colour how often it is activated;
    the bar to the left of a column is the process's work. Both have the same scale in all panels: an even part is as
    high as the dashed line.
    """
    num_ranks = max(placement.num_ranks for _, placement in panels)
    width = max(2 * _GAP + num_ranks * (_COLUMN + _GAP) + 60, 420)
    panel = _TOP + _HEIGHT + 40
    most = max(
        max(max(column) for column in _measure_columns(placement, frequencies)) for _, placement in panels
    )
    height = panel * len(panels) + 40
    body = [
        _draw_panel(name, placement, frequencies, place * panel, _HEIGHT / most)
        for place, (name, placement) in enumerate(panels)
    ]
    words = "; ".join(f"{name}: {_describe(placement, frequencies)}" for name, placement in panels)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" '
        'font-family="system-ui, sans-serif" font-size="11" aria-labelledby="title desc">'
        f'<title id="title">Experts by process</title><desc id="desc">{escape_xml(words)}</desc>'
        "<style>:root{color-scheme:light dark;color:#111}"
        "@media (prefers-color-scheme:dark){:root{color:#eee}}</style>"
        f"{''.join(body)}{_draw_legend(height - 24)}</svg>\n"
    )


def _describe(placement: Placement, frequencies: Sequence[float]) -> str:
    return "memory {:.2f}, computing {:.2f} times even".format(*measure_balance(placement, frequencies))


def _measure_columns(placement: Placement, frequencies: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return memory and work of each process, in even parts."""
    ranks, total = range(placement.num_ranks), sum(placement.widths)
    replicas = sum(placement.widths[expert] for expert in placement.everywhere)
    memory = [(placement.count_units(rank) + replicas) * len(ranks) / total for rank in ranks]
    return memory, [share * len(ranks) for share in list_work(placement, frequencies)]


def _draw_panel(name: str, placement: Placement, frequencies: Sequence[float], top: int, scale: float) -> str:
    bottom, num_ranks = top + _TOP + _HEIGHT, placement.num_ranks
    _, work = _measure_columns(placement, frequencies)
    unit = scale * num_ranks / sum(placement.widths)
    title = f"{name}: {_describe(placement, frequencies)}"
    pieces = [
        f'<text x="{_GAP}" y="{top + 24}" font-size="14" fill="currentColor">{escape_xml(title)}</text>'
    ]
    if placement.everywhere:
        words = "on every process: " + ", ".join(map(str, placement.everywhere))
        pieces.append(f'<text x="{_GAP}" y="{top + 42}" fill="currentColor">{words}</text>')
    most = max(frequencies) or 1.0
    for rank in range(num_ranks):
        left, height = _GAP + 12 + rank * (_COLUMN + _GAP), 0.0
        line = scale * work[rank]
        pieces.append(
            f'<rect x="{left - 8}" y="{bottom - line:.1f}" width="4" height="{line:.1f}" fill="{_WORK}"/>'
            f'<text x="{left + _COLUMN / 2}" y="{bottom + 16}" text-anchor="middle" fill="currentColor">'
            f"process {rank}</text>"
        )
        parts = [(part.expert, part.num_units) for part in placement.list_parts(rank)]
        parts += [(expert, placement.widths[expert]) for expert in placement.everywhere]
        for expert, units in sorted(parts, key=lambda part: -part[1]):
            colour = pick_colour(_SCALE, frequencies[expert] / most)
            height += units * unit
            pieces.append(_draw_expert(expert, units, colour, left, bottom - height, units * unit))
    even, right = bottom - scale, _GAP + num_ranks * (_COLUMN + _GAP) + 12
    pieces.append(
        f'<line x1="{_GAP}" x2="{right}" y1="{even:.1f}" y2="{even:.1f}" stroke="currentColor" '
        'stroke-dasharray="4 3"/>'
    )
    return "".join(pieces)


def _draw_legend(top: int) -> str:
    """Return what colours and bars mean."""
    steps = "".join(
        f'<rect x="{_GAP + 54 + 14 * i}" y="{top - 10}" width="14" height="12" fill="{colour}"/>'
        for i, colour in enumerate(_SCALE)
    )
    after = _GAP + 60 + 14 * len(_SCALE)
    return (
        f'<text x="{_GAP}" y="{top}" fill="currentColor">seldom</text>{steps}'
        f'<text x="{after}" y="{top}" fill="currentColor">often activated</text>'
        f'<rect x="{after + 100}" y="{top - 10}" width="4" height="12" fill="{_WORK}"/>'
        f'<text x="{after + 110}" y="{top}" fill="currentColor">work; dashed: an even part</text>'
    )


def _draw_expert(expert: int, units: int, colour: str, left: float, top: float, size: float) -> str:
    label = (
        f'<text x="{left + _COLUMN / 2}" y="{top + size / 2 + 4:.1f}" text-anchor="middle" '
        f'fill="{choose_text_colour(colour)}">{expert}: {units}</text>'
        if size >= 12
        else ""
    )
    return (
        f'<rect x="{left}" y="{top:.1f}" width="{_COLUMN}" height="{max(size - 1, 0.5):.1f}" fill="{colour}">'
        f"<title>expert {expert}: {units} hidden units</title></rect>{label}"
    )
