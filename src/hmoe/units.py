"""Numbers as people read them: sizes, counts, FLOPs and durations in few digits. Records and JSON keep exact ones."""

import re

_SI = (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3))
_BYTES = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
_LONG_TIMES = (("years", 365.25 * 86400), ("days", 86400.0), ("h", 3600.0), ("min", 60.0))


def format_count(value: float) -> str:
    """Return a count in three digits or more, such as 1.05M parameters; below a thousand as it is."""
    for unit, size in _SI:
        if value >= size:
            return f"{value / size:.2f}{unit}"
    return f"{value:.0f}"


def format_bytes(num_bytes: float) -> str:
    """Return a size in the largest decimal unit that it fills, such as 42.1 GB."""
    for unit, size in _BYTES:
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes:.0f} bytes"


def format_flops(flops: float) -> str:
    """Return FLOPs in two digits, such as 2.6e20; below a million as they are."""
    if flops < 1e6:
        return f"{flops:,.0f}"
    mantissa, exponent = f"{flops:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def format_duration(seconds: float) -> str:
    """Return a time to the second below an hour, to the minute below a day: 42s, 5m07s, 3h20m, 2d04h."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02d}h"
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def format_rough_duration(seconds: float) -> str:
    """Return an estimated time in one or two digits and one unit: 30 s, 5 min, 3 h, 12 days, 40 years."""
    for unit, size in _LONG_TIMES:
        if seconds >= 1.5 * size:
            return f"{float(f'{seconds / size:.1e}'):,.0f} {unit}"
    return f"{max(seconds, 1):.0f} s"


def parse_bytes(text: str) -> int | None:
    """Return the bytes of a size such as 2GB, 500 MB, 1.5GiB or 1000000; None for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([kKMGT])(i?)B?|B)?\s*", text)
    if match is None:
        return None
    amount, unit, binary = match.groups()
    power = 0 if unit is None else "kMGT".index(unit.replace("K", "k")) + 1
    size: int = round(float(amount) * (1024 if binary else 1000) ** power)
    return size
