"""Sequences that hold more than one video: where the video's grid is, from its coordinates."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from freqformer.grid import Grid
from freqformer.integrations.diffusers.calls import VideoTokens

_found: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""By the tensor of coordinates, which a pipeline makes once for a video: it is read on the host
once."""


def last_video(coordinates: Tensor) -> VideoTokens:
    """The video that ends a sequence; what comes before it is exact.

    Args:
        coordinates: of every token (time, height, width), (N, 3), or (B, 3, N) for samples that
            have the same grid. The video's are those of a raster: its times rise from frame to
            frame, and all frames have the same places.

    Raises:
        ValueError: where no grid ends the sequence.
    """
    if coordinates not in _found:
        rows = coordinates if coordinates.ndim == 2 else coordinates[0].T
        grid = _last_grid(rows.detach().double().cpu())
        _found[coordinates] = VideoTokens(grid, before=len(rows) - grid.num_tokens)
    return _found[coordinates]


def past_tokens(given: dict[str, Any], boxes: Mapping[str, tuple[int, int, int]]) -> int:
    """Tokens of frames of the past, which stand before a video at resolutions of their own.

    Args:
        given: a call's arguments by name, with latents (B, C, F, H, W) or None.
        boxes: names of those latents, and the box that makes a token of each; one that the latents
            do not fill counts whole.
    """
    found = ((given.get(name), box) for name, box in boxes.items())
    return sum(
        prod(ceil(side / length) for side, length in zip(latents.shape[2:], box, strict=True))
        for latents, box in found
        if latents is not None
    )


def _last_grid(rows: Tensor) -> Grid:
    area = _run(rows[:, :1])
    places = rows[-area:, 1:]
    width = _run(places[:, :1])
    height = area // width
    if area % width or not _is_raster(places.view(height, width, 2)):
        raise ValueError(
            f"the last {area} of {len(rows)} tokens have one time and are no raster of rows and "
            "columns; a video's grid is allowed at the end of the sequence: pack the video last, "
            "in raster order"
        )
    frames = 1
    while (frames + 1) * area <= len(rows):
        end = len(rows) - frames * area
        frame = rows[end - area : end]
        one_time = bool((frame[:, 0] == frame[0, 0]).all())
        earlier = bool(frame[0, 0] < rows[end, 0])
        if not (one_time and earlier and torch.equal(frame[:, 1:], places)):
            break
        frames += 1
    return Grid(frames, height, width)


def _run(values: Tensor) -> int:
    """How many rows at the end are equal."""
    other = (values != values[-1]).any(1).nonzero()
    return len(values) - (int(other[-1]) + 1 if len(other) else 0)


def _is_raster(places: Tensor) -> bool:
    """Whether (H, W, 2) are the products of H heights and W widths."""
    heights, widths = places.unbind(-1)
    return bool((heights == heights[:, :1]).all()) and bool((widths == widths[:1]).all())
