"""Lists of key tiles turned round: which query tiles list a key tile, in ascending order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from freqformer.config import Band


@dataclass(frozen=True, eq=False)
class TransposedLists:
    """Query tiles by key tile. Shape legend: R rows (1 where all share the lists), T tiles, L
    longest list."""

    starts: Tensor
    """First entry of every (row, key tile) in `queries`, and the end: int64 (R * T + 1,)."""
    queries: Tensor
    """Query tiles, ascending within every key tile, int32 (R * T * L,); entries behind the end are
    not read."""


def transpose_lists(
    lists: Tensor, lengths: Tensor | None, used: Tensor | None = None
) -> TransposedLists:
    """Turn lists round on their device, without waiting for it.

    Args:
        lists: key tiles of every query tile, int (R, T, L), none twice in a list.
        lengths: int (R, T); None: every list has L tiles.
        used: bool (R,), rows whose lists hold something; others may hold anything, and come out
            empty.
    """
    rows, tiles, longest = lists.shape
    first = torch.arange(rows, device=lists.device, dtype=torch.int32)[:, None, None] * tiles
    nowhere = rows * tiles
    owner = lists.to(torch.int32) + first
    if lengths is not None:
        owner = owner.masked_fill(
            torch.arange(longest, device=lists.device) >= lengths[..., None], nowhere
        )
    if used is not None:
        owner = owner.masked_fill(~used[:, None, None], nowhere)
    # A stable sort keeps the query tiles of a key tile ascending, so sums over them have one order.
    owner, entry = owner.flatten().sort(stable=True)
    starts = torch.searchsorted(
        owner, torch.arange(nowhere + 1, device=lists.device, dtype=torch.int32)
    )
    return TransposedLists(starts, (entry // longest % tiles).to(torch.int32))


def key_task_order(
    allocation: Tensor, high_starts: Tensor, mid_starts: Tensor | None, tiles: int
) -> Tensor:
    """Every (row, key tile) as row * T + tile, int32 (R * T,), those with the most query tiles
    first.

    Args:
        allocation: `Band` of every row, int32 (R,).
        high_starts, mid_starts: `TransposedLists.starts` of HIGH and MID rows; None where MID rows
            list every tile.
        tiles: T.
    """
    band = allocation[:, None]
    counts = torch.where(
        band == Band.HIGH, high_starts.diff(), torch.where(band == Band.LOW, 0, tiles)
    )
    if mid_starts is not None:
        counts = torch.where(band == Band.MID, mid_starts.diff().reshape(-1, tiles), counts)
    return counts.flatten().argsort(descending=True, stable=True).to(torch.int32)
