"""Eager and reference attention as one operation with gradients, so that compiled graphs hold it
whole.

Which rows run together follows from data, so no trace can look inside. The backward computes the
forward pass once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from freqformer.ops.backends import PlainImpl
from freqformer.ops.branches import Branches
from freqformer.ops.checks import row_numbers
from freqformer.ops.parameters import (
    LEARNED,
    AttentionParameters,
    BranchGates,
    Pairs,
    RotaryEmbedding,
)
from freqformer.ops.tokens import TokenOrder
from freqformer.plan import AttentionPlan, Selection, plan_numbered

INPUTS = (
    "Tensor query, Tensor key, Tensor value, Tensor bands, Tensor? summary_queries, Tensor? "
    "summary_offsets, "
    "Tensor? gains, Tensor? query_norm, Tensor? key_norm, Tensor? cos, Tensor? sin, Tensor? "
    "text_mask, "
    "Tensor? selection, Tensor? by_token, Tensor? by_sample, SymInt plan, float eps, "
    "bool given, str pairs, bool across_heads, bool norm_text, str order, str impl"
)
TENSORS = 15
"""Inputs that are tensors; the rest are numbers and words."""

# By the lower interface of torch.library: a custom_op's code runs below autograd, and this backward
# needs it.
_LIBRARY = torch.library.Library("freqformer", "FRAGMENT")
_LIBRARY.define(f"unfused_attention({INPUTS}) -> Tensor")
_LIBRARY.define(f"unfused_attention_backward(Tensor grad_out, {INPUTS}, bool[] wanted) -> Tensor[]")


def attention(
    tensors: tuple[Tensor, Tensor, Tensor],
    bands: Tensor,
    *,
    plan: AttentionPlan,
    parameters: AttentionParameters | None,
    low_branch: BranchGates | None,
    text_mask: Tensor | None,
    selection: Selection | None,
    token_order: TokenOrder,
    impl: PlainImpl,
) -> Tensor:
    """See `unfused.unfused_attention`; bands (batch, heads) are checked when a graph runs."""
    given = parameters or AttentionParameters()
    rotation = given.rotation
    rotary = (None, None) if rotation is None else (rotation.cos, rotation.sin)
    learned = [getattr(given, name) for name in LEARNED]
    return torch.ops.freqformer.unfused_attention(
        *tensors,
        bands.to(tensors[0].device),
        *learned,
        *rotary,
        text_mask,
        None if selection is None else selection.tiles,
        *((None, None) if low_branch is None else (low_branch.by_token, low_branch.by_sample)),
        plan.key[0],
        given.norm_eps,
        parameters is not None,
        "interleaved" if rotation is None else rotation.pairs,
        given.norm_across_heads,
        given.norm_text,
        token_order,
        impl,
    )


def _attend(*inputs: Any) -> Tensor:
    query, key, value, bands, *learned, text_mask, selection, by_token, by_sample = inputs[:TENSORS]
    number, eps, given, pairs, across_heads, norm_text, order, impl = inputs[TENSORS:]
    plan = plan_numbered(number)
    parameters = None
    if given:
        parameters = replace(
            _parameters(learned, pairs),
            norm_eps=eps,
            norm_across_heads=across_heads,
            norm_text=norm_text,
        )
    choice = None if selection is None else Selection(selection)
    gates = None
    if by_token is not None or by_sample is not None:
        gates = BranchGates(by_token, by_sample)
    branches = Branches((query, key, value), text_mask, plan, parameters, order, impl)
    # In memory of its own, as what is traced says of it.
    return branches.output(row_numbers(bands, query), choice, gates).contiguous()


def _parameters(learned: Sequence[Tensor | None], pairs: Pairs) -> AttentionParameters:
    *named, cos, sin = learned
    rotary = None if cos is None or sin is None else RotaryEmbedding(cos, sin, pairs)
    return AttentionParameters(**dict(zip(LEARNED, named, strict=True)), rotary=rotary)


def _attend_backward(grad_out: Tensor, *given: Any) -> list[Tensor]:
    """Gradients of the inputs that `wanted`, the last argument, asks for; an empty tensor for each
    other one."""
    *inputs, wanted = given
    with torch.enable_grad():
        own = [
            x.detach().requires_grad_(asked) if isinstance(x, Tensor) else x
            for x, asked in zip(inputs[:TENSORS], wanted, strict=True)
        ]
        out = _attend(*own, *inputs[TENSORS:])
        asked = [x for x in own if isinstance(x, Tensor) and x.requires_grad]
        grads = iter(torch.autograd.grad(out, asked, grad_out, materialize_grads=True))
    return [next(grads).contiguous() if want else grad_out.new_empty(0) for want in wanted]


def _fake_attend(query: Tensor, *_: Any) -> Tensor:
    return query.new_empty(query.shape)


def _fake_backward(grad_out: Tensor, *given: Any) -> list[Tensor]:
    *inputs, wanted = given
    tensors = zip(inputs[:TENSORS], wanted, strict=True)
    return [x.new_empty(x.shape) if want else grad_out.new_empty(0) for x, want in tensors]


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:TENSORS])
    ctx.options = inputs[TENSORS:]


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    wanted = [bool(asked) for asked in ctx.needs_input_grad[:TENSORS]]
    grads = torch.ops.freqformer.unfused_attention_backward(
        grad_out, *tensors, *ctx.options, wanted
    )
    own = [grad if want else None for grad, want in zip(grads, wanted, strict=True)]
    return (*own, *(None for _ in ctx.options))


_LIBRARY.impl("unfused_attention", _attend, "CompositeExplicitAutograd")
_LIBRARY.impl("unfused_attention_backward", _attend_backward, "CompositeExplicitAutograd")
torch.library.register_fake("freqformer::unfused_attention", _fake_attend)
torch.library.register_fake("freqformer::unfused_attention_backward", _fake_backward)
torch.library.register_autograd("freqformer::unfused_attention", _backward, setup_context=_setup)
