"""How the fused path's buffers are laid out, from the plan alone.

Launches allocate by these figures and `ops/NAME/cost.py` counts by them; no kernel is imported.
"""

from __future__ import annotations

from dataclasses import dataclass

from freqformer.cost import STATISTIC_BYTES
from freqformer.grid import TILE_SLOTS
from freqformer.plan import AttentionPlan

PAD = TILE_SLOTS
"""Zero rows behind every segment: a block that starts in a segment may read this far behind its
end."""


@dataclass(frozen=True)
class KeyLayout:
    """First row of every segment of the key and value buffers (R, rows, W), -1 for a segment that
    doesn't exist.

    The order is [video | low | low summaries | mid summaries | high summaries | text | exact
    video], each followed by `PAD` zero rows. Video tokens are in tile order and start at 0.
    """

    low: int
    low_summaries: int
    mid_summaries: int
    high_summaries: int
    text: int
    exact: int
    """Video keys and values with all bands in MID and HIGH rows, for their text queries; 0 where
    the video segment holds them. LOW and DENSE rows always hold them in the video segment, and
    leave this one unread."""
    rows: int
    """Rows of the buffers, pads included."""

    @property
    def offsets(self) -> tuple[int, int, int, int, int, int]:
        """The six offsets, in order."""
        return (
            self.low,
            self.low_summaries,
            self.mid_summaries,
            self.high_summaries,
            self.text,
            self.exact,
        )


def key_layout(plan: AttentionPlan) -> KeyLayout:
    """The layout of a plan's key and value buffers."""
    video, cells, text = plan.layout.grid.num_tokens, plan.cells.num_cells, plan.num_text_tokens
    learned = cells if plan.learned_summaries else 0
    # Band features other than full leave MID and HIGH rows without the exact keys that text queries
    # see.
    exact = video if text and plan.config.band_features != "full" else 0
    offsets, end = [], video + PAD
    for length in (plan.num_low_tokens, cells, learned, learned, text, exact):
        offsets.append(end if length else -1)
        end += length + PAD if length else 0
    offsets[-1] = max(offsets[-1], 0)
    return KeyLayout(*offsets, rows=end)


def query_rows(plan: AttentionPlan) -> int:
    """Rows of a head in the query buffer (R, rows, W): video tokens in tile order, text, and low
    tokens, which LOW heads and a LOW branch ask with."""
    return plan.layout.grid.num_tokens + plan.num_text_tokens + plan.num_low_tokens


SELECTION_QUERIES = 16
"""Query tiles of one block of the selection: the least that a tensor core takes."""
SELECTION_PROGRAMS = 528
"""Programs that share the selection: four on each of 132 multiprocessors."""
SCORE_BYTES = 1 << 27
"""Most bytes of tile scores held at once."""
TEXT_PART_TILES = 64
"""Least key tiles of one part of a text query's list, and"""
TEXT_PARTS = 16
"""most parts: they run beside each other, and their float32 results wait in scratch memory."""


def power_of_two(size: int, least: int = 16) -> int:
    """The smallest power of two from `size` and `least` up: the side of a block in a kernel."""
    return max(least, 1 << (size - 1).bit_length())


def buffer_width(head_dim: int) -> int:
    """Channels of a row of the query, key and value buffers: head_dim, rounded up to what blocks of
    kernels can have; those behind head_dim are zero."""
    return power_of_two(head_dim)


def buffer_row_bytes(plan: AttentionPlan, element_size: int) -> int:
    """Bytes of a row of these buffers, its zeros included."""
    return buffer_width(plan.head_dim) * element_size


def padding(plan: AttentionPlan) -> float:
    """Channels that kernels compute over those that there are, 1 or more."""
    return buffer_width(plan.head_dim) / plan.head_dim


def selects_tiles(plan: AttentionPlan) -> bool:
    """Whether data choose the tiles of MID heads: the pattern is top-k and leaves some out."""
    return plan.mid_lists is None and plan.mid_capacity < plan.layout.num_tiles


def selection_slots(tiles: int) -> int:
    """Blocks of the selection whose scores fit into scratch memory at once, one at least."""
    return max(1, SCORE_BYTES // (STATISTIC_BYTES * SELECTION_QUERIES * power_of_two(tiles)))


def selection_programs(rows: int, tiles: int) -> int:
    """Programs that share the selection of `rows` heads, each with its own scratch."""
    return min(rows * -(-tiles // SELECTION_QUERIES), SELECTION_PROGRAMS, selection_slots(tiles))


def score_bytes(rows: int, tiles: int) -> int:
    """Bytes of tile scores that the selection holds at once."""
    block = SELECTION_QUERIES * power_of_two(tiles) * STATISTIC_BYTES
    return selection_programs(rows, tiles) * block


def text_parts(tiles: int) -> int:
    """Parts that a text query's list of all key tiles is split into."""
    return max(1, min(TEXT_PARTS, tiles // TEXT_PART_TILES))
