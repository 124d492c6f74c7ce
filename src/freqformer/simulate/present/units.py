"""Quantities as people read them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Three digits and the unit that suits: 740 µs, 8.09 ms, 4.96 s, 66.4 min, 12.3 h."""
    if seconds == 0:
        return "0 s"
    for limit, scale, unit in (
        (1e-3, 1e6, "µs"),
        (1, 1e3, "ms"),
        (120, 1, "s"),
        (7200, 1 / 60, "min"),
    ):
        if seconds < limit:
            return f"{_three(seconds * scale)} {unit}"
    return f"{_three(seconds / 3600)} h"


def memory(size: float) -> str:
    """Three digits in KiB, MiB, GiB or TiB."""
    if size == 0:
        return "0"
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB")):
        if size >= 1024**power:
            return f"{_three(size / 1024**power)} {unit}"
    return f"{_three(size / 1024)} KiB"


def _three(value: float) -> str:
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"
