"""The bands of one call, one after the other: prologue, selection, attention and merge in PyTorch.

Shape legend: R rows (batch and head pairs of one band), N video tokens, D head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from freqformer.config import Band
from freqformer.ops.backends import PlainImpl
from freqformer.ops.block_sparse import TileLists, block_sparse_attention, dense_attention
from freqformer.ops.merge import expand_low, gated_sum
from freqformer.ops.parameters import AttentionParameters, BranchGates
from freqformer.ops.prologue import BandInputs, prepare
from freqformer.ops.query_key import normalised, rotated
from freqformer.ops.tokens import TokenOrder, reorder, rotate
from freqformer.patterns import topk_tiles
from freqformer.plan import AttentionPlan, Selection


class Branches:
    """The rows (batch and head pairs) of one call, and each band's operator over them."""

    def __init__(
        self,
        tensors: tuple[Tensor, Tensor, Tensor],
        text_mask: Tensor | None,
        plan: AttentionPlan,
        parameters: AttentionParameters | None,
        token_order: TokenOrder,
        impl: PlainImpl,
    ) -> None:
        self.batch, _, self.heads, _ = tensors[0].shape
        query, key, value = tensors if text_mask is None else _without_masked(tensors, text_mask)
        video = plan.layout.grid.num_tokens
        if parameters is not None:
            # Text has no bands: it is turned at once, where tables reach so far.
            query, key = (
                rotated(normalised(x, weight, parameters, video), parameters, first=video)
                for x, weight in ((query, parameters.query_norm), (key, parameters.key_norm))
            )
        self.query, self.key, self.value = (
            x.transpose(1, 2).flatten(0, 1) for x in (query, key, value)
        )
        self.plan, self.parameters = plan, parameters
        self.token_order: TokenOrder = token_order
        self.impl: PlainImpl = impl
        self.video = video
        self.text_mask = None if text_mask is None else text_mask.repeat_interleave(self.heads, 0)

    def output(
        self, bands: Tensor, selection: Selection | None, low_branch: BranchGates | None
    ) -> Tensor:
        """(batch, tokens, heads, head_dim), video queries by the band of their row, with a LOW
        branch where gates are given, and text queries exactly."""
        out = self._own(bands, selection)
        everyone = torch.arange(self.query.shape[0], device=self.query.device)
        if low_branch is not None:
            low = self._banded(Band.LOW, everyone, None)
            out = self._by_rows(
                gated_sum(self._by_heads(out), self._by_heads(low), *low_branch.both)
            )
        if self.plan.num_text_tokens:
            out = torch.cat([out, self._exact(self.query[:, self.video :], everyone)], 1)
        return self._by_heads(out)

    def _by_heads(self, x: Tensor) -> Tensor:
        """(R, tokens, D) -> (batch, tokens, heads, D)."""
        return x.unflatten(0, (self.batch, self.heads)).transpose(1, 2)

    def _by_rows(self, x: Tensor) -> Tensor:
        """(batch, tokens, heads, D) -> (R, tokens, D)."""
        return x.transpose(1, 2).flatten(0, 1)

    def _own(self, bands: Tensor, selection: Selection | None) -> Tensor:
        """Outputs of the video queries by the band of their row, (R, N, D)."""
        parts, order = [], []
        for band in Band:
            rows = (bands == band).nonzero().squeeze(1)
            if len(rows):
                parts.append(
                    self._dense(rows) if band == Band.DENSE else self._banded(band, rows, selection)
                )
                order.append(rows)
        return torch.cat(parts).index_select(0, torch.cat(order).argsort())

    def _banded(self, band: Band, rows: Tensor, selection: Selection | None) -> Tensor:
        """Prologue, selection, attention and merge of the rows in one band: (R, N, D)."""
        query, key, value = (
            x.index_select(0, rows)[:, : self.video] for x in (self.query, self.key, self.value)
        )
        inputs = prepare(
            query,
            key,
            value,
            band=band,
            plan=self.plan,
            rows=rows,
            parameters=self.parameters,
            token_order=self.token_order,
        )
        tiles = None if band == Band.LOW else self._tiles(band, inputs, rows, selection)
        extras = self._with_text(inputs, rows)
        out = block_sparse_attention(
            inputs.query, inputs.key, inputs.value, extras, tiles, impl=self.impl
        )
        if band == Band.LOW:
            return expand_low(out, self.plan, self.token_order)
        return reorder(out, self.plan.layout, "tile", self.token_order)

    def _tiles(
        self, band: Band, inputs: BandInputs, rows: Tensor, selection: Selection | None
    ) -> TileLists:
        plan = self.plan
        if inputs.selection_means is None:
            fixed = plan.high_lists if band == Band.HIGH else plan.mid_lists
            assert fixed is not None  # only top-k has no fixed lists, and it has means
            lists = fixed[None]
        elif selection is None:
            lists = topk_tiles(*inputs.selection_means, plan.mid_capacity)
        else:
            where = rows.to(selection.tiles.device)
            lists = plan.check_selection(
                selection, self.batch, (where // self.heads, where % self.heads)
            )
        return TileLists(plan.layout, lists.to(rows.device), plan.cells)

    def _with_text(self, inputs: BandInputs, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        extras = (inputs.extra_key, inputs.extra_value, inputs.extra_bias)
        if not self.plan.num_text_tokens:
            return extras
        bias = extras[2].new_zeros(len(rows), self.plan.num_text_tokens)
        if self.text_mask is not None:
            bias = bias.masked_fill(~self.text_mask.index_select(0, rows), -torch.inf)
        key, value = (x.index_select(0, rows)[:, self.video :] for x in (self.key, self.value))
        return (
            torch.cat([extras[0], key], 1),
            torch.cat([extras[1], value], 1),
            torch.cat([extras[2], bias], 1),
        )

    def _dense(self, rows: Tensor) -> Tensor:
        video = self.query.index_select(0, rows)[:, : self.video]
        return self._exact(self._rotated(video, rows), rows)

    def _exact(self, query: Tensor, rows: Tensor) -> Tensor:
        """Dense attention of the rows' queries over every exact video token and all text."""
        key, value = self.key.index_select(0, rows), self.value.index_select(0, rows)
        if self.plan.num_text_tokens:
            video = self._rotated(key[:, : self.video], rows)
            key = torch.cat([video, key[:, self.video :]], 1)
        else:
            key = self._rotated(key, rows)
        mask = None
        if self.text_mask is not None:
            mask = self.text_mask.index_select(0, rows)
            mask = torch.cat([mask.new_ones(len(rows), self.video), mask], 1)
        return dense_attention(query, key, value, mask, impl=self.impl)

    def _rotated(self, x: Tensor, rows: Tensor) -> Tensor:
        """Video tokens (R, N, D) of some rows, turned."""
        rotation = self.parameters.rotation if self.parameters is not None else None
        if rotation is None:
            return x
        cos, sin = rotation.of_rows(rows, self.heads)
        return rotate(x, (cos[:, : self.video], sin[:, : self.video]), rotation.pairs)


def _without_masked(
    tensors: tuple[Tensor, Tensor, Tensor], text_mask: Tensor
) -> tuple[Tensor, ...]:
    """Query, key and value (B, N + X, H, D) where masked text tokens hold nothing that could reach
    others.

    Keys and values weigh nothing, but 0 * NaN is NaN; queries only where they aren't finite, since
    their outputs count.
    """
    hidden = ~text_mask[:, :, None, None]
    video = tensors[0].shape[1] - text_mask.shape[1]
    query, *others = (x.split([video, text_mask.shape[1]], 1) for x in tensors)
    text = query[1].masked_fill(hidden & ~query[1].isfinite(), 0)
    return torch.cat([query[0], text], 1), *(
        torch.cat([x, y.masked_fill(hidden, 0)], 1) for x, y in others
    )
