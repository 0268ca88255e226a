"""Numbers as people read them."""

import pytest

from hmoe.units import (
    format_bytes,
    format_count,
    format_duration,
    format_flops,
    format_rough_duration,
    parse_bytes,
)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (format_count(1_051_264), "1.05M"),
        (format_count(999), "999"),
        (format_count(819_200), "819.20k"),
        (format_bytes(42.1e9), "42.1 GB"),
        (format_bytes(0), "0 bytes"),
        (format_flops(2.6123e20), "2.6e20"),
        (format_flops(9.96e11), "1.0e12"),
        (format_flops(12), "12"),
        (format_duration(0.4), "0s"),
        (format_duration(307), "5m07s"),
        (format_duration(12_000), "3h20m"),
        (format_duration(187_200), "2d04h"),
        (format_rough_duration(0.2), "1 s"),
        (format_rough_duration(30), "30 s"),
        (format_rough_duration(300), "5 min"),
        (format_rough_duration(86_400 * 365.25 * 44), "44 years"),
    ],
)
def test_numbers_read_well(shown: str, expected: str) -> None:
    assert shown == expected


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GB", 2 * 10**9), ("500 MB", 5 * 10**8), ("1.5GiB", 3 * 2**29), ("7", 7), ("64k", 64_000), ("3B", 3),
        ("1TB", 10**12),
        ("", None), ("-1GB", None), ("1e9", None), ("GB", None), ("1 XB", None), ("1GBs", None),
    ],
)  # fmt: skip
def test_sizes_are_read(text: str, size: int | None) -> None:
    assert parse_bytes(text) == size
