"""Lengths of videos as people write them: 65536, 64K, 1e6, 5s, 60s@1080p/24."""

from __future__ import annotations

import re

from freqformer.grid import Grid
from freqformer.simulate.model.profiles import ProfileError
from freqformer.simulate.model.transformers import ModelShape

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20}
"""What a letter after a number of tokens multiplies it by: 64K is 65,536, as people mean it."""
COUNT = re.compile(r"(?P<number>[+-]?\d+(\.\d+)?([eE][+-]?\d+)?)(?P<unit>[kKM]?)")
DURATION = re.compile(r"(?P<seconds>\d+(\.\d+)?)s(@(?P<resolution>\w+))?(/(?P<fps>\d+(\.\d+)?))?")


def parse_length(model: ModelShape, length: int | str) -> tuple[Grid, float | None]:
    """The grid of a number of tokens or a duration, and the frame rate if one is named.

    Args:
        model: whose resolution, patches and frame rate make tokens.
        length: tokens, as a whole number or a text like "65536", "64K" (65,536), "1M" (1,048,576)
            or "1e6"; or a duration like "5s", "5s@720p" or "60s@1080p/24" (frames per second).

    Raises:
        ProfileError: for a text that is neither, or a value out of range.
    """
    if isinstance(length, int):
        return model.grid_for_tokens(length, model.resolution), None
    text = str(length).strip()
    count = COUNT.fullmatch(text)
    if count is not None:
        tokens = float(count["number"]) * UNITS[count["unit"].upper()]
        # What is no whole number is named as it was typed.
        whole = int(tokens) if tokens.is_integer() else text
        return model.grid_for_tokens(whole, model.resolution), None  # type: ignore[arg-type]
    match = DURATION.fullmatch(text)
    if match is None:
        raise ProfileError(
            f"length is {text[:80]!r}; tokens like 65536, 64K, 1M or 1e6, or durations like 5s, "
            "5s@720p, 60s@1080p/24 are allowed"
        )
    fps = float(match["fps"]) if match["fps"] else None
    resolution = match["resolution"] or model.resolution
    return model.grid_for_seconds(float(match["seconds"]), resolution, fps), fps
