"""Draw what one query of a small video sees in each band and in the default.

    PYTHONPATH=src python -m tools.draw_bands [docs/assets/bands.svg]

What is drawn is read from the plan of the grid: its lists of tiles, its low tokens, and for MID
the tiles that top-k takes. Tiles are 2 x 2 tokens of one frame here, so that they can be seen.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from freqformer import patterns
from freqformer._colours import BANDS, INK
from freqformer._files import write_text
from freqformer.bands import low_grid
from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Grid
from freqformer.plan import AttentionPlan, build_plan

PICTURE = Path(__file__).parents[1] / "docs" / "assets" / "bands.svg"
GRID = Grid(num_frames=5, height=12, width=12)
CONFIG = FreqFormerConfig(
    tile=(1, 2, 2), compression=128, mid_tiles=20, window=(3, 3, 3), summary_tokens=0
)
QUERY = (2, 6, 5)
"""Frame, row and column of the token that asks."""
TITLES = {
    "LOW": "every tile of the video, as one token",
    "MID": "the tiles that match it best",
    "HIGH": "a window around it",
    "DENSE": "every token",
    "default": "HIGH + LOW, gated, in every head",
}
CELL, GAP, MARGIN = 10, 20, 20
"""Sides of a token, between frames and at the edge, in pixels of the picture."""
TITLE, ROW = 38, 186
"""From the top of a row to its frames, and to the next row."""
SHOWN = 600
"""Most pixels that a page gives the picture in width, so that what follows it is soon seen."""
PAPER, SHEET, QUERY_INK = "#FFFFFF", "#E6E8EB", "#000000"


class Seen(NamedTuple):
    """What one query sees: exact tokens by their number, and whether all low tokens."""

    tokens: list[int]
    colour: str
    low: bool


def tile_of(plan: AttentionPlan, place: tuple[int, int, int]) -> int:
    """The tile that holds the token at (frame, row, column)."""
    box = torch.tensor(plan.layout.tile)
    inside = (plan.layout.coordinates() == torch.tensor(place) // box).all(-1)
    return int(inside.nonzero())


def tokens_of(plan: AttentionPlan, tiles: list[int]) -> list[int]:
    """The tokens of these tiles in raster order, ascending."""
    layout = plan.layout
    tile_of_token = torch.arange(layout.num_tiles).repeat_interleave(layout.counts)
    inside = torch.isin(tile_of_token[layout.tile_to_raster], torch.tensor(tiles))
    return inside.nonzero()[:, 0].tolist()


def moving_disc(plan: AttentionPlan) -> torch.Tensor:
    """How far every tile lies within a disc that moves across the video, float64 (1, tiles, 1): as
    the mean queries and keys of a head that follows one thing."""
    frame, row, column = (plan.layout.coordinates()[:, axis].double() for axis in range(3))
    along = frame - QUERY[0]
    distance = (row - 3.1 - 0.6 * along) ** 2 + (column - 2.4 - along) ** 2
    return (20 - distance)[None, :, None]


def seen(plan: AttentionPlan) -> dict[str, Seen]:
    """What the query sees, by row of the picture."""
    query, every = tile_of(plan, QUERY), list(range(plan.layout.num_tiles))
    disc = moving_disc(plan)
    best = patterns.topk_tiles(disc, disc, plan.mid_capacity)[0, query].tolist()
    near = tokens_of(plan, plan.high_lists[query].tolist())
    colours = dict(zip(Band, BANDS, strict=True))
    return {
        "LOW": Seen([], "", True),
        "MID": Seen(tokens_of(plan, best), colours[Band.MID], False),
        "HIGH": Seen(near, colours[Band.HIGH], False),
        "DENSE": Seen(tokens_of(plan, every), colours[Band.DENSE], False),
        "default": Seen(near, colours[Band.HIGH], True),
    }


def corner(frame: int, row: float, column: float) -> tuple[float, float]:
    """x and y of a token's upper left corner, from the upper left one of its row of frames."""
    return frame * (GRID.width * CELL + GAP) + column * CELL, row * CELL


def squares(numbers: Iterable[int], colour: str) -> str:
    """Tokens, by their number, as one path."""
    size, drawn = CELL - 1, ""
    for number in numbers:
        frame, place = divmod(number, GRID.height * GRID.width)
        x, y = corner(frame, *divmod(place, GRID.width))
        drawn += f"M{x:g} {y:g}h{size}v{size}h-{size}z"
    return f'<path fill="{colour}" d="{drawn}"/>'


def low_tokens(plan: AttentionPlan) -> str:
    """All low tokens as one path, each a dot in the middle of what it stands for."""
    count = low_grid(plan.layout, plan.config)
    sides = [extent / n for extent, n in zip(GRID.shape, count, strict=True)]
    drawn = ""
    for place in torch.cartesian_prod(*map(torch.arange, count)).tolist():
        frame, row, column = ((i + 0.5) * side for i, side in zip(place, sides, strict=True))
        x, y = corner(int(frame), row, column)
        drawn += f"M{x:g} {y:g}h0"
    colour = BANDS[Band.LOW]
    return f'<path stroke="{colour}" stroke-width="{CELL}" stroke-linecap="round" d="{drawn}"/>'


def row(name: str, sees: Seen, plan: AttentionPlan, top: int) -> list[str]:
    """A title, the frames and what is seen of them."""
    query = (QUERY[0] * GRID.height + QUERY[1]) * GRID.width + QUERY[2]
    side = GRID.width * CELL - 1
    sheets = [
        f'<rect x="{corner(frame, 0, 0)[0]}" y="0" width="{side}" height="{side}" fill="{SHEET}"/>'
        for frame in range(GRID.num_frames)
    ]
    return [
        f'<g id="{name}" transform="translate({MARGIN} {top})">',
        f'<text y="26"><tspan font-weight="700">{name}</tspan> {TITLES[name]}</text>',
        f'<g transform="translate(0 {TITLE})">',
        *sheets,
        squares(sees.tokens, sees.colour),
        low_tokens(plan) if sees.low else "",
        squares([query], QUERY_INK),
        "</g></g>",
    ]


def draw(plan: AttentionPlan) -> str:
    """The picture as SVG. It has its own paper, and so reads alike on light and dark pages."""
    rows = seen(plan)
    width = 2 * MARGIN + GRID.num_frames * (GRID.width * CELL + GAP) - GAP
    height = MARGIN + len(rows) * ROW
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{SHOWN}" height="{SHOWN * height / width:.0f}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="26" fill="{INK}">',
        "<title>What one query sees in each band and in the default</title>",
        f'<rect width="{width}" height="{height}" rx="12" fill="{PAPER}"/>',
    ]
    for number, (name, sees) in enumerate(rows.items()):
        lines += row(name, sees, plan, MARGIN // 2 + number * ROW)
    return "\n".join([*lines, "</svg>", ""])


def main(path: Path = PICTURE) -> None:
    """Write the picture."""
    write_text(path, draw(build_plan(GRID, CONFIG, num_heads=1, head_dim=16)))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
