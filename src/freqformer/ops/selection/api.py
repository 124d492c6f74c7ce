"""The choice of key tiles of MID heads in the fused pipeline. The plain code's is
`patterns.topk_tiles`.

Shape legend: R rows, T tiles, C cells, D channels of the prologue's sums.
"""

from __future__ import annotations

from torch import Tensor


def select(
    sums: Tensor,
    bands: Tensor,
    tile_offsets: Tensor,
    cells: tuple[Tensor, Tensor] | None,
    count: int,
) -> tuple[Tensor, Tensor | None]:
    """The `count` best key tiles of every query tile of MID rows by mean query . mean key, the tile
    itself among them.

    Args:
        sums: float32 (3, R, T, D), sums over tiles of queries, keys and values.
        bands: `Band` of every row, int32 (R,).
        tile_offsets: first token of every tile, and N: int32 (T + 1,).
        cells: tiles of every cell (C, most), -1 behind the last, and tokens of every cell (C,),
            int32; None without summaries.
        count: tiles to keep, at most T.

    Returns:
        lists: int32 (R, T, count), ascending; among equal scores the lower tiles. Rows of other
            bands hold anything.
        bias: float32 (R, T, C), log(tokens of the cell that the query tile doesn't see exactly),
            -inf where none is left; None without cells.
    """
    # Imported here, since Triton decides at import whether it interprets, and a CPU may have no
    # Triton at all.
    from freqformer.ops.selection.triton import launch

    return launch.select(sums, bands, tile_offsets, cells, count)
