"""The fused pipeline as one operation with gradients, so that compiled graphs hold it whole.

Its backward runs the launches in reverse over what the prologue computes once more. Beside its
inputs and output a call keeps the low tokens' outputs, the log-sum-exp of every query, what
rounding took from the outputs, and the choice of tiles. Shape legend: R rows, N + X tokens, M low
tokens, T tiles, k kept tiles, C cells, D head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from freqformer.config import Band
from freqformer.ops.block_sparse.tables import launch_tables
from freqformer.ops.block_sparse.triton import AttentionBuffers, MidLists, RowBands
from freqformer.ops.block_sparse.triton_backward import attend_backward
from freqformer.ops.fused import EVERY_BAND, FusedCall, contiguous, run
from freqformer.ops.merge.backward_tables import collapse_tables
from freqformer.ops.merge.triton_backward import merge_low_backward
from freqformer.ops.parameters import LEARNED, AttentionParameters
from freqformer.ops.prologue.tables import prologue_tables
from freqformer.ops.prologue.triton import prepare_rows
from freqformer.ops.prologue.triton_backward import prepare_rows_backward
from freqformer.plan import Selection, check_known, plan_numbered

BAND_SETS = [frozenset(band for band in Band if bits >> band & 1) for bits in range(16)]
"""Sets of bands by the sum of 2^band."""


def attention(
    tensors: tuple[Tensor, Tensor, Tensor], parameters: AttentionParameters, call: FusedCall
) -> Tensor:
    """`fused.run` as an operation, differentiable in the tensors and in what is learned."""
    plan = call.plan
    if not torch.compiler.is_compiling():
        check_known(plan)
    learned: list[Tensor | None] = [getattr(parameters, name) for name in LEARNED]
    tables: list[Tensor | None] = (
        [None, None] if parameters.rotary is None else list(parameters.rotary)
    )
    asked = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (*tensors, *learned)
    )
    outputs = torch.ops.freqformer.attention(
        *tensors,
        call.bands,
        *learned,
        *tables,
        call.text_mask,
        None if call.selection is None else call.selection.tiles,
        plan.key[0],
        plan.key[1:],
        plan.mid_lists is None,
        parameters.norm_eps,
        15 if call.present is EVERY_BAND else sum(1 << band for band in call.present),
        call.token_order == "raster",
        asked,
    )
    return outputs[0]


@torch.library.custom_op(
    "freqformer::attention",
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor value, Tensor bands, Tensor? summary_queries, "
    "Tensor? summary_offsets, "
    "Tensor? gains, Tensor? query_norm, Tensor? key_norm, Tensor? cos, Tensor? sin, Tensor? "
    "text_mask, Tensor? selection, "
    "SymInt plan, SymInt[] sizes, bool chooses, float eps, int present, bool raster, bool "
    "backward) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bands: Tensor,
    summary_queries: Tensor | None,
    summary_offsets: Tensor | None,
    gains: Tensor | None,
    query_norm: Tensor | None,
    key_norm: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    text_mask: Tensor | None,
    selection: Tensor | None,
    plan: int,
    sizes: Sequence[int],
    chooses: bool,
    eps: float,
    present: int,
    raster: bool,
    backward: bool,
) -> tuple[Tensor, ...]:
    """out, and without `backward` six empty tensors, with it low_out, lse, remainder, and MID
    lists, lengths and bias.

    `plan` and `sizes` are `AttentionPlan.key`, and `chooses` says that MID lists are a choice, as
    top-k is.
    """
    choice = None if selection is None else Selection(selection)
    call = FusedCall(
        plan_numbered(plan),
        bands,
        BAND_SETS[present],
        text_mask,
        choice,
        "raster" if raster else "tile",
    )
    learned = (summary_queries, summary_offsets, gains, query_norm, key_norm, cos, sin)
    outputs = run((query, key, value), _parameters(learned, eps), call, backward=backward)
    nothing = [query.new_empty(0) for _ in range(6)]
    if not backward:
        return outputs.out, *nothing
    assert outputs.remainder is not None
    kept = [outputs.low_out, outputs.lse, outputs.remainder]
    if outputs.mid is not None:
        # A selection given as int32 would be an output that is an input.
        lists = outputs.mid.lists.clone() if choice is not None else outputs.mid.lists
        rest = (lists, outputs.mid.lengths, outputs.mid.bias)
        nothing[3:] = [
            empty if x is None else x for x, empty in zip(rest, nothing[3:], strict=True)
        ]
    return outputs.out, *kept, *nothing[3:]


@_attention.register_fake
def _(query, *rest):
    selection, _, sizes, chooses, _, present, _, backward = rest[11:]
    batch, tokens, heads, head_dim = query.shape
    rows, (low, tiles, kept, cells) = batch * heads, sizes
    out = query.new_empty(batch, tokens, heads, head_dim)
    if not backward:
        return out, *(query.new_empty(0) for _ in range(6))
    wide, whole = {"dtype": torch.float32}, {"dtype": torch.int32}
    nothing, given = (0,), selection is not None
    kept = selection.shape[-1] if given else kept
    chosen = chooses and Band.MID in BAND_SETS[present] and (given or kept < tiles)
    return (
        out,
        query.new_empty(rows, low, head_dim),
        query.new_empty(rows, tokens, **wide),
        query.new_empty(rows, tokens, 2 if query.dtype == torch.float32 else head_dim),
        query.new_empty((rows, tiles, kept), **whole) if chosen else query.new_empty(nothing),
        query.new_empty((rows, tiles), **whole) if chosen and given else query.new_empty(nothing),
        query.new_empty((rows, tiles, cells), **wide)
        if chosen and cells
        else query.new_empty(nothing),
    )


@torch.library.custom_op(
    "freqformer::attention_backward",
    mutates_args=(),
    schema="(Tensor grad_out, Tensor[] tensors, Tensor bands, Tensor?[] learned, Tensor? "
    "text_mask, Tensor[] kept, "
    "SymInt plan, float eps, int present, bool raster) -> (Tensor, Tensor, Tensor, Tensor, Tensor, "
    "Tensor, Tensor, Tensor)",
)
def _attention_backward(
    grad_out: Tensor,
    tensors: Sequence[Tensor],
    bands: Tensor,
    learned: Sequence[Tensor | None],
    text_mask: Tensor | None,
    kept: Sequence[Tensor],
    plan: int,
    eps: float,
    present: int,
    raster: bool,
) -> tuple[Tensor, ...]:
    """Gradients of query, key, value and `LEARNED`, empty for what isn't given; `kept` are the
    outputs of the forward."""
    query, key, value = tensors
    out, low_out, lse, remainder, lists, lengths, bias = kept
    parameters, order = _parameters(learned, eps), "raster" if raster else "tile"
    own, grad_out = plan_numbered(plan), grad_out.contiguous()
    launch, tables = (
        launch_tables(own, query.device),
        prologue_tables(own, query.device, query.dtype),
    )
    given = {"parameters": parameters, "token_order": order, "text_mask": text_mask}
    rows = prepare_rows((query, key, value), bands, tables, launch.band_blocks, **given)
    grad_low_out = low_out
    if Band.LOW in BAND_SETS[present]:
        collapse = collapse_tables(own, query.device, query.dtype, order)
        grad_low_out = merge_low_backward(grad_out, rows.bands, collapse, own.num_low_tokens)
    mid = None
    if lists.numel():
        mid = MidLists(lists, lengths if lengths.numel() else None, bias if bias.numel() else None)
    attention = attend_backward(
        (grad_out, grad_low_out),
        (out, low_out, lse, remainder),
        AttentionBuffers(rows.query, rows.key, rows.value),
        RowBands(rows.bands, rows.order),
        launch,
        mid=mid,
        summary_offsets=contiguous(parameters.summary_offsets),
        text_mask=contiguous(text_mask),
        token_order=order,
    )
    prologue = prepare_rows_backward(
        (attention.query, attention.key, attention.value),
        (query, key, value),
        rows.bands,
        (rows.key, rows.value, rows.pool_lse),
        tables,
        **given,
    )
    rest = (
        prologue.summary_queries,
        attention.summary_offsets,
        prologue.gains,
        prologue.query_norm,
        prologue.key_norm,
    )
    return (*prologue.tensors, *(query.new_empty(0) if x is None else x for x in rest))


@_attention_backward.register_fake
def _(grad_out, tensors, bands, learned, *_):
    rest = (
        grad_out.new_empty(0) if x is None else torch.empty_like(x) for x in learned[: len(LEARNED)]
    )
    return (*(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in tensors), *rest)


def _setup(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    tensors, (text_mask, _, plan, _, _, eps, present, raster, _) = inputs[:11], inputs[11:]
    ctx.save_for_backward(text_mask, *tensors, *output)
    ctx.options = (plan, eps, present, raster)
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad_out: Tensor, *_: Tensor) -> tuple:
    text_mask, query, key, value, bands, *rest = ctx.saved_tensors
    learned, kept = rest[:7], rest[7:]
    grads = torch.ops.freqformer.attention_backward(
        grad_out, [query, key, value], bands, learned, text_mask, kept, *ctx.options
    )
    own = [None if x is None else grad for x, grad in zip(learned, grads[3:], strict=False)]
    return (*grads[:3], None, *own, *(None for _ in range(11)))


_attention.register_autograd(_backward, setup_context=_setup)


def _parameters(learned: Sequence[Tensor | None], eps: float) -> AttentionParameters:
    named = dict(zip(LEARNED, learned, strict=False))
    cos, sin = learned[len(LEARNED) :]
    rotary = None if cos is None or sin is None else (cos, sin)
    return AttentionParameters(**named, rotary=rotary, norm_eps=eps)
