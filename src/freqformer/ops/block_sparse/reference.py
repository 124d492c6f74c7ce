"""Block-sparse attention with a full mask: simple, differentiable by autograd, in any float dtype.
Memory is quadratic."""

from __future__ import annotations

import torch
from torch import Tensor

from freqformer.ops.block_sparse.api import TileLists


def attend(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    extras: tuple[Tensor, Tensor, Tensor],
    tiles: TileLists | None,
) -> Tensor:
    """See `api.block_sparse_attention`."""
    outputs = []
    for row in range(query.shape[0]):
        extra_key, extra_value, extra_bias = (extra[row] for extra in extras)
        bias = extra_bias.expand(query.shape[1], -1)
        keys, values = extra_key, extra_value
        if tiles is not None and key is not None and value is not None:
            bias = torch.cat(_video_bias(tiles, row, bias), -1)
            keys, values = torch.cat([key[row], extra_key]), torch.cat([value[row], extra_value])
        outputs.append(_softmax_attention(query[row], keys, values, bias))
    return torch.stack(outputs) if outputs else query.clone()


def _video_bias(tiles: TileLists, row: int, extra_bias: Tensor) -> tuple[Tensor, Tensor]:
    """Bias of every (query, video key): 0 or -inf; and of every (query, extra key)."""
    layout, lists = tiles.layout, tiles.lists[row if tiles.lists.shape[0] > 1 else 0]
    device = extra_bias.device
    owner = torch.repeat_interleave(layout.counts).to(device)
    seen = torch.zeros(layout.num_tiles, layout.num_tiles + 1, dtype=torch.bool, device=device)
    seen[torch.arange(layout.num_tiles, device=device)[:, None], lists] = (
        True  # -1 falls into the spare last column
    )
    seen = seen[:, :-1]
    zero = extra_bias.new_zeros(())
    video = torch.where(seen[owner][:, owner], zero, -torch.inf)
    if tiles.cells is None:
        return video, extra_bias
    cell = tiles.cells.cell_of_tile[:, None] == torch.arange(tiles.cells.num_cells)
    exact = (seen.double() * layout.counts.to(device)) @ cell.to(device).double()
    left = (tiles.cells.counts.to(device) - exact).log().to(extra_bias.dtype)
    left = torch.nn.functional.pad(left, (0, extra_bias.shape[-1] - left.shape[-1]))
    return video, extra_bias + left[owner]


def _softmax_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    nothing = bias.isneginf().all(-1, keepdim=True)
    scores = query @ key.T * query.shape[-1] ** -0.5 + bias.masked_fill(nothing, 0).to(query.dtype)
    return scores.softmax(-1).masked_fill(nothing, 0) @ value


def attend_dense(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None) -> Tensor:
    """See `api.dense_attention`."""
    scores = query @ key.transpose(1, 2) * query.shape[-1] ** -0.5
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[:, None], -torch.inf)
    return scores.softmax(-1) @ value
