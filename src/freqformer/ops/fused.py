"""The fused pipeline: prologue, selection, one attention launch over every head of every band, and
merge.

Five launches in all (one more pools learned summaries, and one joins long lists of text queries),
and nothing waits for the device in between. Shape legend: B batch, H heads, R = B * H rows, N video
tokens, X text tokens, D head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from freqformer.buffers import selects_tiles
from freqformer.config import Band
from freqformer.ops import cost
from freqformer.ops.backends import Tensors, launches_of
from freqformer.ops.block_sparse.records import (
    AttentionBuffers,
    AttentionOutputs,
    MidLists,
    RowBands,
)
from freqformer.ops.checks import check_bands, head_bands
from freqformer.ops.parameters import AttentionParameters, BranchGates, KnownBands
from freqformer.ops.tokens import TokenOrder
from freqformer.plan import AttentionPlan, Selection, build_plan

if TYPE_CHECKING:
    from freqformer.ops.prologue.tables import PrologueTables
    from freqformer.ops.prologue.triton.arguments import PreparedRows

EVERY_BAND = frozenset(Band)


@dataclass(frozen=True, eq=False)
class FusedCall:
    """What a call of the pipeline takes beside its tensors."""

    plan: AttentionPlan
    bands: Tensor
    """The band of every head on the device, whole numbers (B, H)."""
    present: frozenset[int]
    """Which bands may be among them."""
    low_branch: BranchGates | None
    text_mask: Tensor | None
    selection: Selection | None
    token_order: TokenOrder
    deterministic: bool = True
    """False lets a backend take sums in any order, where it has such code."""
    backend: str = "triton"
    """A fused row of `backends.BACKENDS`, which computes the attention launch."""
    head_parts: int = 1
    """In how many parts heads are computed, one after the other, where no gradients are asked for:
    each part holds the workspace of its heads alone."""


@dataclass(frozen=True, eq=False)
class FusedOutputs:
    """What a call of the pipeline gives, and what its backward needs of it."""

    out: Tensor
    """(B, N + X, H, D)."""
    attention: AttentionOutputs
    """What the attention launch gave. Its `out` is the one above, but for a call with a LOW branch
    of which gradients will be asked for: then it holds the bands' outputs."""
    mid: MidLists | None


def fused_attention(
    tensors: Tensors,
    allocation: Tensor | Sequence[int] | KnownBands,
    *,
    plan: AttentionPlan,
    parameters: AttentionParameters | None,
    low_branch: BranchGates | None,
    text_mask: Tensor | None,
    selection: Selection | None,
    token_order: TokenOrder,
    deterministic: bool,
    backend: str,
    head_parts: int = 1,
) -> Tensor:
    """See `attention.frequency_attention`, whose checks have passed.

    An allocation on the device is not read back, and so not checked: a head whose number is no band
    gives NaN.
    """
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in tensors)
    bands, present = _device_bands(allocation, query)
    if low_branch is not None:
        low_branch = BranchGates(*(contiguous(x) for x in low_branch.both))
    call = FusedCall(
        plan=plan,
        bands=bands,
        present=present,
        low_branch=low_branch,
        text_mask=text_mask,
        selection=selection,
        token_order=token_order,
        deterministic=deterministic,
        backend=backend,
        head_parts=head_parts,
    )
    given = _as_launched(parameters or AttentionParameters(), len(query))
    gates = (None, None) if low_branch is None else low_branch.both
    learned = (
        *gates,
        given.summary_queries,
        given.summary_offsets,
        given.gains,
        given.query_norm,
        given.key_norm,
    )
    asked = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (*tensors, *learned)
    )
    # Tensors without data launch nothing; the operation knows its outputs all the same.
    if asked or query.is_meta or torch.compiler.is_compiling():
        from freqformer.ops.fused_operation import attention

        return attention((query, key, value), given, call)
    return output((query, key, value), given, call)


def output(tensors: Tensors, parameters: AttentionParameters, call: FusedCall) -> Tensor:
    """The output (B, N + X, H, D) of a call of which no gradients will be asked for."""
    if call.head_parts == 1:
        return run(tensors, parameters, call).out
    query, _, _ = tensors
    scales = _scales(tensors, parameters, call)
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    _, _, heads, _ = query.shape
    ends = [heads * part // call.head_parts for part in range(call.head_parts + 1)]
    for start, end in pairwise(ends):
        part = slice(start, end)
        query, key, value = (x[:, :, part] for x in tensors)
        some = _of_heads(call, part)
        # No name holds a part's outputs while the next one runs.
        out[:, :, part] = run(
            (query, key, value), parameters.of_heads(part), some, scales=scales
        ).out
    return out


def _of_heads(call: FusedCall, part: slice) -> FusedCall:
    """The call of some heads."""
    plan, gates, choice = call.plan, call.low_branch, call.selection
    own = build_plan(
        plan.layout.grid,
        plan.config,
        num_heads=part.stop - part.start,
        head_dim=plan.head_dim,
        num_text_tokens=plan.num_text_tokens,
        learned_summaries=plan.learned_summaries,
    )
    if gates is not None:
        gates = BranchGates(*(contiguous(x) for x in gates.of_heads(part).both))
    return replace(
        call,
        plan=own,
        bands=call.bands[:, part],
        low_branch=gates,
        selection=None if choice is None else Selection(choice.tiles[:, part]),
        head_parts=1,
    )


def _scales(tensors: Tensors, parameters: AttentionParameters, call: FusedCall) -> Tensor | None:
    """What a norm across all heads multiplies queries and keys by; None without one."""
    from freqformer.ops.prologue.tables import prologue_tables
    from freqformer.ops.prologue.triton.launch import token_scales_of

    query, _, _ = tensors
    tables = prologue_tables(call.plan, query.device, query.dtype)
    return token_scales_of(tensors, parameters, tables, call.token_order, call.text_mask)


def _as_launched(parameters: AttentionParameters, batch: int) -> AttentionParameters:
    """The same as launches take it: gains in float32, which kernels load as they are and subtract
    from one another, and offsets (B, H, 3), of one sample without a copy."""
    gains, offsets = parameters.gains, parameters.summary_offsets
    if gains is not None and gains.dtype != torch.float32:
        parameters = replace(parameters, gains=gains.float())
    if offsets is None or offsets.ndim == 3:
        return parameters
    return replace(parameters, summary_offsets=offsets.expand(batch, -1, -1).contiguous())


def run(
    tensors: Tensors,
    parameters: AttentionParameters,
    call: FusedCall,
    *,
    backward: bool = False,
    scales: Tensor | None = None,
) -> FusedOutputs:
    """The launches of one call of all its heads at once, in order; `backward` says that gradients
    will be asked for, and `scales` are those of `prepare_rows`."""
    # Imported here, since Triton decides at import whether it interprets, and a CPU may have no
    # Triton at all.
    from freqformer.ops.block_sparse.tables import launch_tables
    from freqformer.ops.merge.tables import merge_tables
    from freqformer.ops.merge.triton.launch import merge_low
    from freqformer.ops.prologue.tables import prologue_tables
    from freqformer.ops.prologue.triton.launch import prepare_rows

    plan, device, dtype = call.plan, tensors[0].device, tensors[0].dtype
    launch, tables = launch_tables(plan, device), prologue_tables(plan, device, dtype)
    branch, any_low = call.low_branch is not None, Band.LOW in call.present
    rows = prepare_rows(
        tensors,
        call.bands,
        tables,
        launch.band_blocks,
        parameters=parameters,
        token_order=call.token_order,
        text_mask=call.text_mask,
        low_branch=branch,
        scales=scales,
    )
    mid = None
    if Band.MID in call.present and plan.mid_lists is None:
        mid = _mid_lists(rows, tables, call.selection)
    attention = launches_of(call.backend).attend(
        AttentionBuffers(rows.query, rows.key, rows.value),
        RowBands(rows.bands, rows.order, any_low, branch),
        launch,
        mid=mid,
        summary_offsets=contiguous(parameters.summary_offsets),
        text_mask=contiguous(call.text_mask),
        token_order=call.token_order,
        backward=backward,
    )
    own = out = attention.out
    if branch and backward:
        out = torch.empty_like(own)
    if any_low or branch:
        merge = merge_tables(plan, device, dtype)
        order, gates = call.token_order, call.low_branch
        merge_low(attention.low_out, own, out, call.bands, merge, order, gates)
    return FusedOutputs(out, attention, mid)


def contiguous(x: Tensor | None) -> Tensor | None:
    """x in one piece of memory; None stays."""
    return None if x is None else x.contiguous()


def _device_bands(
    allocation: Tensor | Sequence[int] | KnownBands, query: Tensor
) -> tuple[Tensor, frozenset[int]]:
    """The band of every head on the device, whole numbers (B, H), and which bands may be among
    them."""
    if isinstance(allocation, KnownBands):
        bands = head_bands(allocation.bands, query)
        return bands.to(query.device), frozenset(allocation.present)
    if torch.compiler.is_compiling() and isinstance(allocation, list):
        batch, _, heads, _ = query.shape
        for band in range(len(Band)):
            if (
                allocation == [band] * heads
            ):  # made on the device: a compiled graph would copy it there at every call
                return query.new_full((batch, heads), band, dtype=torch.int32), frozenset((band,))
    bands = head_bands(allocation, query)
    if bands.device.type != "cpu" or torch.compiler.is_compiling():
        return bands.to(query.device), EVERY_BAND
    check_bands(bands)
    known = tuple(bands.flatten().tolist())
    return _uploaded(known, query.shape[2], query.device), frozenset(known)


@lru_cache(maxsize=256)
def _uploaded(bands: tuple[int, ...], heads: int, device: torch.device) -> Tensor:
    return torch.tensor(bands, dtype=torch.int32, device=device).unflatten(0, (-1, heads))


def _mid_lists(
    rows: PreparedRows, tables: PrologueTables, selection: Selection | None
) -> MidLists | None:
    """The top-k choice of a call, or the given one; None where MID heads see every tile."""
    from freqformer.ops.selection.api import select
    from freqformer.ops.selection.reference import unseen_bias

    plan = tables.plan
    summarised = plan.cells.num_cells > 0
    if selection is None:
        if not selects_tiles(plan):
            return None
        cells = (tables.cell_tiles, tables.cell_counts) if summarised else None
        lists, bias = select(rows.sums, rows.bands, tables.tile_offsets, cells, plan.mid_capacity)
        return MidLists(lists, None, bias)
    # What is given by hand is checked first, and that waits for the device.
    heads = plan.num_heads
    mid = (rows.bands == Band.MID).nonzero().squeeze(1).to(selection.tiles.device)
    lists = plan.check_selection(selection, len(rows.bands) // heads, (mid // heads, mid % heads))
    every = selection.tiles.to(rows.bands.device, torch.int32).flatten(0, 1).contiguous()
    bias = None
    if summarised:
        bias = every.new_empty(*every.shape[:2], plan.cells.num_cells, dtype=torch.float32)
        bias[mid] = unseen_bias(lists.to(bias.device), plan)
    return MidLists(every, (every >= 0).sum(-1, dtype=torch.int32), bias)


def workspace_bytes(plan: AttentionPlan, batch: int, dtype: torch.dtype) -> int:
    """Bytes that one call holds beside query, key, value and output, all at once.

    Args:
        plan: the plan of the call.
        batch: samples.
        dtype: of the query.
    """
    return cost.workspace_bytes(plan, batch * plan.num_heads, dtype.itemsize)
