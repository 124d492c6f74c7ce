"""Frequency-banded attention as a function: every head uses the operator of its band."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from freqformer.config import PLAN_FIELDS, FreqFormerConfig
from freqformer.grid import Grid
from freqformer.ops import fused, unfused
from freqformer.ops.backends import ImplChoice, resolve
from freqformer.ops.checks import (
    check_head_parts,
    check_low_branch,
    check_options,
    check_parameters,
    check_tensors,
)
from freqformer.ops.parameters import AttentionParameters, BranchGates, KnownBands
from freqformer.ops.tokens import TokenOrder
from freqformer.plan import AttentionPlan, Selection, build_plan


def frequency_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    grid: Grid,
    allocation: Tensor | Sequence[int] | KnownBands | None = None,
    config: FreqFormerConfig = FreqFormerConfig(),
    num_text_tokens: int = 0,
    text_mask: Tensor | None = None,
    parameters: AttentionParameters | None = None,
    low_branch: BranchGates | None = None,
    plan: AttentionPlan | None = None,
    selection: Selection | None = None,
    token_order: TokenOrder = "raster",
    impl: ImplChoice = "auto",
    head_parts: int = 1,
) -> Tensor:
    """Self-attention over video tokens, with one operator per head: low, mid, high or dense.

    `torch.compile` takes it whole. Gradients of gradients, and `torch.func.grad`, need impl="eager"
    or "reference"; `torch.vmap` and forward-mode differentiation are refused.

    Args:
        query, key, value: (batch, video tokens + text tokens, heads, head_dim), float64, float32,
            float16 or bfloat16; queries and keys normalised and rotated, but for what `parameters`
            asks the operation to do.
        grid: the video's token grid.
        allocation: `Band` of every head, (heads,) or (batch, heads), whole numbers 0 to 3; None
            takes the config's. impl="triton" doesn't read back one that is on the GPU: a head whose
            number is no band gives NaN there. `KnownBands` says which bands such a one may hold.
        config: bands, patterns and summaries. Its routing, prior and low_branch are what a layer
            does, and are not read here.
        num_text_tokens: text tokens behind the video tokens. Text is never compressed; text queries
            see everything.
        text_mask: bool (batch, num_text_tokens), True where a text token may be seen. What masked
            tokens hold, NaN included, reaches no other token.
        parameters: what is learned; None takes low summaries only, no offsets and unit gains.
        low_branch: gates that add a LOW branch to every head's own band, in the same launches;
            None leaves heads with their band alone.
        plan: the plan of this grid and config, built outside a compiled region; None builds or
            finds it.
        selection: the tiles of MID heads for `mid_pattern="topk"`; None chooses them by tile means,
            the lower tile first among equal ones.
        token_order: order of the video tokens in and out, `raster` or `tile`.
        impl: `triton` (fused, on a GPU; head_dim up to 256, not float64), `gluon` (the same
            with attention kernels for Hopper; head_dim 33 to 128 in 16 bits), `eager` (linear
            memory, any device), `reference` (full masks), or `auto`: on a GPU gluon where it can
            run, else triton where it can, else eager. The log says which, and a warning says once
            why a GPU runs eager.
        head_parts: in how many parts, one after the other, `triton` and `gluon` compute the heads
            where no gradients are asked for, from 1 to heads: with 4 they hold a quarter of the
            queries, keys and values in tile order at once. No bit depends on it.

    Returns: (batch, tokens, heads, head_dim) in the dtype of the query.

    Raises:
        ValueError: for shapes, dtypes, bands or options that do not fit, naming the argument and
            the remedy.
    """
    check_tensors(query, key, value, grid, num_text_tokens, text_mask)
    check_options(config, selection, token_order, impl)
    check_parameters(parameters, query, grid, config)
    check_low_branch(low_branch, query, grid)
    check_head_parts(head_parts, query)
    plan = _plan_for(query, grid, config, num_text_tokens, parameters, plan)
    qkv = (query, key, value)
    if allocation is None:
        allocation = config.bands(query.shape[2])
    backend = resolve(impl, qkv, parameters)
    if backend.plain is None:
        return fused.fused_attention(
            qkv,
            allocation,
            plan=plan,
            parameters=parameters,
            low_branch=low_branch,
            text_mask=text_mask,
            selection=selection,
            token_order=token_order,
            deterministic=config.deterministic,
            backend=backend.name,
            head_parts=head_parts,
        )
    return unfused.unfused_attention(
        qkv,
        allocation,
        plan=plan,
        parameters=parameters,
        low_branch=low_branch,
        text_mask=text_mask,
        selection=selection,
        token_order=token_order,
        impl=backend.plain,
    )


def _plan_for(
    query: Tensor,
    grid: Grid,
    config: FreqFormerConfig,
    num_text_tokens: int,
    parameters: AttentionParameters | None,
    plan: AttentionPlan | None,
) -> AttentionPlan:
    heads, head_dim = query.shape[2:]
    learned = parameters is not None and parameters.summary_queries is not None
    if plan is None:
        return build_plan(
            grid,
            config,
            num_heads=heads,
            head_dim=head_dim,
            num_text_tokens=num_text_tokens,
            learned_summaries=learned,
        )
    if not isinstance(plan, AttentionPlan):
        raise ValueError(
            f"plan is {plan!r}; an AttentionPlan or None is allowed: make it with build_plan"
        )
    # Field by field: torch 2.11 can't compare records in a traced call.
    made = (
        plan.layout.grid,
        *(getattr(plan.config, name) for name in PLAN_FIELDS),
        plan.num_heads,
        plan.head_dim,
        plan.num_text_tokens,
        plan.learned_summaries,
    )
    asked = (
        grid,
        *(getattr(config, name) for name in PLAN_FIELDS),
        heads,
        head_dim,
        num_text_tokens,
        learned,
    )
    if made != asked:
        raise ValueError(
            f"plan was built for {made}; this call has {asked}: build it with build_plan for this "
            "call"
        )
    return plan
