"""A picture of placements (HMoE figure 9): processes side by side, in each its experts, as wide as they are large."""

from collections.abc import Mapping, Sequence

from hmoe.figures.colours import choose_text_colour, pick_colour
from hmoe.figures.svg import escape_xml
from hmoe.specs.placement import Placement, measure_balance

_COLUMN, _GAP, _HEIGHT, _TOP = 84, 14, 260, 64
_SCALE = ("#dce9f5", "#8db8dc", "#3a7ab8", "#123f6d")  # from rarely to often activated


def draw_placement(placements: Mapping[str, Placement], frequencies: Sequence[float]) -> str:
    """Return an SVG of placements of the same experts, one panel above the other.

    A process is a column of its experts. The height of each is its hidden units, its colour how often it is activated
    per token; the line to the left of a column is the process's work. Both have the same scale in all panels: an even
    part is as high as the dashed line.
    """
    num_ranks = max(placement.num_ranks for placement in placements.values())
    width = 2 * _GAP + num_ranks * (_COLUMN + _GAP) + 60
    panel = _TOP + _HEIGHT + 40
    height = panel * len(placements)
    body = [
        _draw_panel(name, placement, frequencies, top)
        for (name, placement), top in zip(placements.items(), range(0, height, panel), strict=True)
    ]
    words = "; ".join(
        "{}: memory {:.2f}, computing {:.2f} times even".format(
            name, *measure_balance(placement, frequencies)
        )
        for name, placement in placements.items()
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" '
        'font-family="system-ui, sans-serif" font-size="11" aria-labelledby="title desc">'
        f'<title id="title">Experts by process</title><desc id="desc">{escape_xml(words)}</desc>'
        "<style>:root{color-scheme:light dark;color:#111}"
        "@media (prefers-color-scheme:dark){:root{color:#eee}}</style>"
        f"{''.join(body)}</svg>\n"
    )


def _draw_panel(name: str, placement: Placement, frequencies: Sequence[float], top: int) -> str:
    ranks, widths = range(placement.num_ranks), placement.widths
    balance = measure_balance(placement, frequencies)
    even_units = sum(placement.count_units(rank) for rank in ranks) / placement.num_ranks or 1.0
    work = [sum(frequencies[p.expert] * p.num_units for p in placement.list_parts(rank)) for rank in ranks]
    even_work = sum(work) / placement.num_ranks or 1.0
    most = max(max(placement.count_units(rank) / even_units, work[rank] / even_work) for rank in ranks)
    scale, bottom = _HEIGHT / max(most, 1.0), top + _TOP + _HEIGHT
    heats = sorted({frequencies[expert] for expert in range(len(widths))})
    title = f"{name}: memory {balance.memory:.2f}, computing {balance.compute:.2f} times even"
    pieces = [
        f'<text x="{_GAP}" y="{top + 24}" font-size="14" fill="currentColor">{escape_xml(title)}</text>'
    ]
    if placement.everywhere:
        words = "on every process: " + ", ".join(map(str, placement.everywhere))
        pieces.append(f'<text x="{_GAP}" y="{top + 42}" fill="currentColor">{words}</text>')
    for rank in ranks:
        left, height = _GAP + 12 + rank * (_COLUMN + _GAP), 0.0
        line = scale * work[rank] / even_work
        pieces.append(
            f'<rect x="{left - 8}" y="{bottom - line:.1f}" width="4" height="{line:.1f}" fill="#c2571a"/>'
            f'<text x="{left + _COLUMN / 2}" y="{bottom + 16}" text-anchor="middle" fill="currentColor">'
            f"process {rank}</text>"
        )
        for part in sorted(placement.list_parts(rank), key=lambda part: -part.num_units):
            size = scale * part.num_units / even_units
            place = heats.index(frequencies[part.expert]) / max(len(heats) - 1, 1)
            colour = pick_colour(_SCALE, place)
            height += size
            pieces.append(_draw_expert(part.expert, part.num_units, colour, left, bottom - height, size))
    even = bottom - scale
    pieces.append(
        f'<line x1="{_GAP}" x2="{_GAP + placement.num_ranks * (_COLUMN + _GAP) + 12}" y1="{even:.1f}" y2="{even:.1f}" '
        'stroke="currentColor" stroke-dasharray="4 3"/>'
    )
    return "".join(pieces)


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
