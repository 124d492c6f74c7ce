"""The fused pipeline as one operation with gradients, so that compiled graphs hold it whole.

Its backward runs the launches in reverse over what the prologue computes once more. Beside its
inputs and output a call keeps the low tokens' outputs, the log-sum-exp of every query, what
rounding took from the outputs, and the choice of tiles. Shape legend: R rows, N + X tokens, M low
tokens, T tiles, k kept tiles, C cells, D head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from freqformer.config import Band
from freqformer.ops.backends import launches_of
from freqformer.ops.block_sparse.records import (
    AttentionBuffers,
    AttentionOutputs,
    MidLists,
    RowBands,
)
from freqformer.ops.block_sparse.tables import launch_tables
from freqformer.ops.fused import EVERY_BAND, FusedCall, contiguous, output, run
from freqformer.ops.merge.backward_tables import collapse_tables
from freqformer.ops.merge.tables import merge_tables
from freqformer.ops.merge.triton.launch import low_gate_grads, merge_low_backward
from freqformer.ops.parameters import (
    LEARNED,
    AttentionParameters,
    BranchGates,
    Pairs,
    gates_of,
    operands,
    parameters_of,
)
from freqformer.ops.prologue.tables import prologue_tables
from freqformer.ops.prologue.triton.launch import prepare_rows
from freqformer.ops.prologue.triton.launch_backward import prepare_rows_backward
from freqformer.ops.tokens import TokenOrder
from freqformer.plan import Selection, check_known, plan_numbered

BAND_SETS = [frozenset(band for band in Band if bits >> band & 1) for bits in range(16)]
"""Sets of bands by the sum of 2^band."""


class Inputs(NamedTuple):
    """What the operation takes, in the order of its schema."""

    query: Tensor
    key: Tensor
    value: Tensor
    bands: Tensor
    """Whole numbers (B, H)."""
    summary_queries: Tensor | None
    summary_offsets: Tensor | None
    gains: Tensor | None
    query_norm: Tensor | None
    key_norm: Tensor | None
    by_token: Tensor | None
    by_sample: Tensor | None
    """Gates of a LOW branch, see `BranchGates`; both None for no branch."""
    cos: Tensor | None
    sin: Tensor | None
    text_mask: Tensor | None
    selection: Tensor | None
    plan: int
    """First number of `AttentionPlan.key`, and"""
    sizes: Sequence[int]
    """the others."""
    chooses: bool
    """Whether MID lists are a choice, as top-k is."""
    eps: float
    pairs: Pairs
    across_heads: bool
    norm_text: bool
    """As `RotaryEmbedding` and `AttentionParameters` have these three."""
    present: int
    """Which bands there may be, an index into `BAND_SETS`."""
    raster: bool
    """Whether tokens come in raster order."""
    backward: bool
    """Whether gradients will be asked for."""
    deterministic: bool
    backend: str
    head_parts: int
    """As `FusedCall` has these three."""

    @property
    def parameters(self) -> AttentionParameters:
        return parameters_of(self)

    @property
    def low_branch(self) -> BranchGates | None:
        return gates_of(self)

    @property
    def token_order(self) -> TokenOrder:
        return "raster" if self.raster else "tile"


DIFFERENTIABLE = ("query", "key", "value", *LEARNED, "by_token", "by_sample")
"""Inputs that get a gradient."""


class Kept(NamedTuple):
    """What a forward pass keeps for the backward; empty where there is none."""

    own: Tensor
    """The bands' outputs (B, N + X, H, D), with a LOW branch alone; else they are the output."""
    low_out: Tensor
    lse: Tensor
    rounding_residual: Tensor
    lists: Tensor
    lengths: Tensor
    bias: Tensor


INPUT_SCHEMA = (
    "Tensor query, Tensor key, Tensor value, Tensor bands, Tensor? summary_queries, "
    "Tensor? summary_offsets, Tensor? gains, Tensor? query_norm, Tensor? key_norm, "
    "Tensor? by_token, Tensor? by_sample, Tensor? cos, Tensor? sin, Tensor? text_mask, "
    "Tensor? selection, SymInt plan, SymInt[] sizes, bool chooses, float eps, str pairs, "
    "bool across_heads, bool norm_text, int present, bool raster, bool backward, "
    "bool deterministic, str backend, SymInt head_parts"
)
EIGHT = "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
TEN = "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"


def attention(
    tensors: tuple[Tensor, Tensor, Tensor], parameters: AttentionParameters, call: FusedCall
) -> Tensor:
    """`fused.run` as an operation, differentiable in the tensors, in what is learned and in the
    gates."""
    plan = call.plan
    if not torch.compiler.is_compiling():
        check_known(plan)
    inputs = Inputs(
        *tensors,
        bands=call.bands,
        **operands(parameters, call.low_branch),
        text_mask=call.text_mask,
        selection=None if call.selection is None else call.selection.tiles,
        plan=plan.key[0],
        sizes=plan.key[1:],
        chooses=plan.mid_lists is None,
        present=15 if call.present is EVERY_BAND else sum(1 << band for band in call.present),
        raster=call.token_order == "raster",
        backward=False,
        deterministic=call.deterministic,
        backend=call.backend,
        head_parts=call.head_parts,
    )
    given = [getattr(inputs, name) for name in DIFFERENTIABLE]
    asked = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in given)
    out, *_ = torch.ops.freqformer.attention(*inputs._replace(backward=asked))
    return out


# torch.library wants the arguments by name and in the schema's order; `Inputs` is both.
@torch.library.custom_op(
    "freqformer::attention", mutates_args=(), schema=f"({INPUT_SCHEMA}) -> {EIGHT}"
)
def _attention(*arguments: Any, **named: Any) -> tuple[Tensor, ...]:
    """out, and what is kept; without `backward` that is empty."""
    inputs = Inputs(*arguments, **named)
    choice = None if inputs.selection is None else Selection(inputs.selection)
    call = FusedCall(
        plan_numbered(inputs.plan),
        inputs.bands,
        BAND_SETS[inputs.present],
        inputs.low_branch,
        inputs.text_mask,
        choice,
        inputs.token_order,
        inputs.deterministic,
        inputs.backend,
        inputs.head_parts,
    )
    query = inputs.query
    tensors = (query, inputs.key, inputs.value)
    kept = Kept(*(query.new_empty(0) for _ in Kept._fields))
    if not inputs.backward:
        return output(tensors, inputs.parameters, call), *kept
    outputs = run(tensors, inputs.parameters, call, backward=True)
    given = outputs.attention
    assert given.rounding_residual is not None
    kept = kept._replace(
        low_out=given.low_out, lse=given.lse, rounding_residual=given.rounding_residual
    )
    if call.low_branch is not None:
        kept = kept._replace(own=given.out)
    if outputs.mid is not None:
        named_lists = {name: getattr(outputs.mid, name) for name in ("lists", "lengths", "bias")}
        kept = kept._replace(**{name: x for name, x in named_lists.items() if x is not None})
    if choice is not None and outputs.mid is not None:
        # A selection given as int32 would be an output that is an input.
        kept = kept._replace(lists=kept.lists.clone())
    return outputs.out, *kept


@_attention.register_fake
def _(*arguments, **named):
    inputs = Inputs(*arguments, **named)
    query, selection = inputs.query, inputs.selection
    batch, tokens, heads, head_dim = query.shape
    rows, (low, tiles, kept_tiles, cells) = batch * heads, inputs.sizes
    out = query.new_empty(batch, tokens, heads, head_dim)
    kept = Kept(*(query.new_empty(0) for _ in Kept._fields))
    if not inputs.backward:
        return out, *kept
    queries, narrow = tokens + low, 2 if query.dtype == torch.float32 else head_dim
    kept = kept._replace(
        low_out=query.new_empty(rows, low, head_dim),
        lse=query.new_empty(rows, queries, dtype=torch.float32),
        rounding_residual=query.new_empty(rows, queries, narrow),
    )
    if inputs.low_branch is not None:
        kept = kept._replace(own=torch.empty_like(out))
    given = selection is not None
    kept_tiles = selection.shape[-1] if given else kept_tiles
    if inputs.chooses and Band.MID in BAND_SETS[inputs.present] and (given or kept_tiles < tiles):
        kept = kept._replace(lists=query.new_empty((rows, tiles, kept_tiles), dtype=torch.int32))
        if given:
            kept = kept._replace(lengths=query.new_empty((rows, tiles), dtype=torch.int32))
        if cells:
            kept = kept._replace(bias=query.new_empty((rows, tiles, cells), dtype=torch.float32))
    return out, *kept


@torch.library.custom_op(
    "freqformer::attention_backward",
    mutates_args=(),
    schema=f"(Tensor grad_out, Tensor out, Tensor[] kept, {INPUT_SCHEMA}) -> {TEN}",
)
def _attention_backward(
    grad_out: Tensor, out: Tensor, kept: Sequence[Tensor], *arguments: Any, **named: Any
) -> tuple[Tensor, ...]:
    """Gradients of `DIFFERENTIABLE`, empty for what isn't given; `out` and `kept` are the outputs
    of the forward."""
    inputs, saved = Inputs(*arguments, **named), Kept(*kept)
    query, order, gates = inputs.query, inputs.token_order, inputs.low_branch
    tensors, parameters = (query, inputs.key, inputs.value), inputs.parameters
    plan, grad_out = plan_numbered(inputs.plan), grad_out.contiguous()
    tables = prologue_tables(plan, query.device, query.dtype)
    launch = launch_tables(plan, query.device)
    branch, any_low = gates is not None, Band.LOW in BAND_SETS[inputs.present]
    given: dict[str, Any] = {
        "parameters": parameters,
        "token_order": order,
        "text_mask": inputs.text_mask,
        "low_branch": branch,
    }
    rows = prepare_rows(tensors, inputs.bands, tables, launch.band_blocks, **given)
    grad_low_out, gate_grads = saved.low_out, None
    if any_low or branch:
        collapse = collapse_tables(plan, query.device, query.dtype, order)
        grad_low_out = merge_low_backward(
            grad_out, rows.bands, collapse, plan.num_low_tokens, gates
        )
    if branch:
        batch, _, heads, _ = query.shape
        video = plan.layout.grid.num_tokens
        gate_grads = query.new_empty(batch, video, 2, heads, dtype=torch.float32)
        merge = merge_tables(plan, query.device, query.dtype)
        low_gate_grads(grad_out, saved.low_out, gate_grads, rows.bands, merge, order)
    attention = launches_of(inputs.backend).attend_backward(
        (grad_out, grad_low_out),
        AttentionOutputs(
            saved.own if branch else out, saved.low_out, saved.lse, saved.rounding_residual
        ),
        AttentionBuffers(rows.query, rows.key, rows.value),
        RowBands(rows.bands, rows.order, any_low, branch),
        launch,
        mid=_mid_lists(saved),
        summary_offsets=contiguous(parameters.summary_offsets),
        text_mask=contiguous(inputs.text_mask),
        token_order=order,
        low_branch=gates,
        gate_grads=gate_grads,
        deterministic=inputs.deterministic,
    )
    prologue = prepare_rows_backward(
        (attention.query, attention.key, attention.value),
        tensors,
        rows,
        tables,
        **given,
    )
    grads = (
        *prologue.qkv,
        prologue.summary_queries,
        attention.summary_offsets,
        prologue.gains,
        prologue.query_norm,
        prologue.key_norm,
        *_gate_grads(inputs, gate_grads),
    )
    return tuple(query.new_empty(0) if x is None else x for x in grads)


def _mid_lists(saved: Kept) -> MidLists | None:
    """The choice of tiles that the forward made."""
    if not saved.lists.numel():
        return None
    return MidLists(saved.lists, _unless_empty(saved.lengths), _unless_empty(saved.bias))


def _unless_empty(x: Tensor) -> Tensor | None:
    return x if x.numel() else None


def _gate_grads(inputs: Inputs, grads: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the gates by token and by sample from those of their sum, (B, N, 2, H)."""
    by_token, by_sample = None, None
    if grads is not None and inputs.by_token is not None:
        by_token = grads.to(inputs.by_token.dtype)
    if grads is not None and inputs.by_sample is not None:
        by_sample = grads.sum(1).to(inputs.by_sample.dtype)
    # What an operation returns may not be an input or another output.
    return by_token, by_sample


@_attention_backward.register_fake
def _(grad_out, out, kept, *arguments, **named):
    inputs = Inputs(*arguments, **named)
    given = (getattr(inputs, name) for name in DIFFERENTIABLE)
    # Contiguous, whatever the strides of what came.
    return tuple(grad_out.new_empty(0) if x is None else x.new_empty(x.shape) for x in given)


def _setup(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    named = Inputs(*inputs)._asdict()
    ctx.tensors = [name for name, x in named.items() if isinstance(x, Tensor)]
    ctx.others = {name: x for name, x in named.items() if not isinstance(x, Tensor)}
    out, *kept = output
    # Of what is kept nothing has a gradient, and torch would make zeros as large as it.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*(named[name] for name in ctx.tensors), out, *kept)
    ctx.mark_non_differentiable(*kept)


def _backward(ctx: Any, grad_out: Tensor, *_: Tensor) -> tuple:
    saved = iter(ctx.saved_tensors)
    inputs = Inputs(**{name: next(saved) for name in ctx.tensors}, **ctx.others)
    out, *kept = saved
    grads = torch.ops.freqformer.attention_backward(grad_out, out, kept, *inputs)
    own = dict(zip(DIFFERENTIABLE, grads, strict=True))
    return tuple(
        own[name] if name in own and x is not None else None for name, x in inputs._asdict().items()
    )


_attention.register_autograd(_backward, setup_context=_setup)
