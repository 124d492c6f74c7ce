"""Where the keys of a row lie in the key and value buffers that the fused launches share."""

from __future__ import annotations

from dataclasses import dataclass

from freqformer.grid import TILE_SLOTS
from freqformer.plan import AttentionPlan

PAD = TILE_SLOTS
"""Zero rows behind every segment: a block that starts in a segment may read this far behind its end."""


@dataclass(frozen=True)
class KeyLayout:
    """First row of every segment of the key and value buffers (R, rows, D), -1 for a segment that doesn't exist.

    The order is [video | low | low summaries | mid summaries | high summaries | text | exact video], each followed by
    `PAD` zero rows. Video tokens are in tile order and start at 0.
    """

    low: int
    low_summaries: int
    mid_summaries: int
    high_summaries: int
    text: int
    exact: int
    """Video keys and values with all bands in MID and HIGH rows, for their text queries; 0 where the video segment holds
    them. LOW and DENSE rows always hold them in the video segment, and leave this one unread."""
    rows: int
    """Rows of the buffers, pads included."""

    @property
    def offsets(self) -> tuple[int, int, int, int, int, int]:
        """The six offsets, in order."""
        return (self.low, self.low_summaries, self.mid_summaries, self.high_summaries, self.text, self.exact)


def key_layout(plan: AttentionPlan) -> KeyLayout:
    """The layout of a plan's key and value buffers."""
    video, cells, text = plan.layout.grid.num_tokens, plan.cells.num_cells, plan.num_text_tokens
    learned = cells if plan.learned_summaries else 0
    # Band features other than full leave MID and HIGH rows without the exact keys that text queries see.
    exact = video if text and plan.config.band_features != "full" else 0
    offsets, end = [], video + PAD
    for length in (plan.num_low_tokens, cells, learned, learned, text, exact):
        offsets.append(end if length else -1)
        end += length + PAD if length else 0
    offsets[-1] = max(offsets[-1], 0)
    return KeyLayout(*offsets, rows=end)
