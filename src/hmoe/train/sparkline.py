"""The shares of experts as a row of small bars, the narrowest expert first."""

from collections.abc import Sequence

_BARS = "▁▂▃▄▅▆▇█"
_ASCII_BARS = "_.:-=+*#"  # for terminals without Unicode


def draw_shares(shares_ZE: Sequence[Sequence[float]], widths: Sequence[int], encoding: str = "utf-8") -> str:
    """Return a character per expert, by width: its share of the token-expert pairs, of the largest share.

    Args:
        shares_ZE: share of each expert in each MoE layer, of which the mean over layers is drawn.
        widths: hidden units of each expert.
        encoding: of where it is shown.
    """
    sums = [sum(column) for column in zip(*shares_ZE, strict=True)]
    ordered = [share for _, share in sorted(zip(widths, sums, strict=True), key=lambda pair: pair[0])]
    bars = _BARS if _can_show(_BARS, encoding) else _ASCII_BARS
    largest = max(ordered, default=0.0) or 1.0
    return "".join(bars[min(int(len(bars) * share / largest), len(bars) - 1)] for share in ordered)


def _can_show(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
