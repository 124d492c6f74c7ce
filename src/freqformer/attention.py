"""Frequency-banded attention: every head uses the operator of its band."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from torch import Tensor

from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid
from freqformer.ops.block_sparse import Impl
from freqformer.ops.branches import Branches
from freqformer.ops.checks import check_options, check_tensors, row_bands
from freqformer.ops.parameters import AttentionParameters
from freqformer.ops.tokens import TokenOrder
from freqformer.plan import AttentionPlan, Selection, build_plan

logger = logging.getLogger(__name__)


def frequency_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    grid: Grid,
    allocation: Tensor | Sequence[int],
    config: FreqFormerConfig,
    num_text_tokens: int = 0,
    text_mask: Tensor | None = None,
    parameters: AttentionParameters | None = None,
    plan: AttentionPlan | None = None,
    selection: Selection | None = None,
    token_order: TokenOrder = "raster",
    impl: Literal["auto", "eager", "reference"] = "auto",
) -> Tensor:
    """Self-attention over video tokens, with one operator per head: low, mid, high or dense.

    Args:
        query, key, value: (batch, video tokens + text tokens, heads, head_dim), float64, float32, float16 or bfloat16;
            queries and keys normalised and, unless `parameters.rotary` is given, rotated.
        grid: the video's token grid.
        allocation: `Band` of every head, (heads,) or (batch, heads), whole numbers 0 to 3.
        config: bands, patterns and summaries.
        num_text_tokens: text tokens behind the video tokens. Text is never compressed; text queries see everything.
        text_mask: bool (batch, num_text_tokens), True where a text token may be seen.
        parameters: what is learned; None takes low summaries only, no offsets and unit gains.
        plan: the plan of this grid and config, built outside a compiled region; None builds or finds it.
        selection: the tiles of MID heads for `mid_pattern="topk"`; None chooses them by tile means.
        token_order: order of the video tokens in and out, `raster` or `tile`.
        impl: `eager` (linear memory, any device), `reference` (full masks), or `auto`, which is eager.

    Returns: (batch, tokens, heads, head_dim) in the dtype of the query.

    Raises:
        ValueError: for shapes, dtypes, bands or options that do not fit, naming the argument and the remedy.
    """
    check_tensors(query, key, value, grid, num_text_tokens, text_mask)
    check_options(config, parameters, token_order, impl)
    plan = _plan_for(query, grid, config, num_text_tokens, parameters, plan)
    call = Branches((query, key, value), text_mask, plan, parameters, token_order, _resolve(impl, query.device.type))
    return call.output(row_bands(allocation, query), selection)


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
    made = (plan.layout.grid, plan.config, plan.num_heads, plan.head_dim, plan.num_text_tokens, plan.learned_summaries)
    asked = (grid, config, heads, head_dim, num_text_tokens, learned)
    if made != asked:
        raise ValueError(f"plan was built for {made}; this call has {asked}: build it with build_plan for this call")
    return plan


@lru_cache(maxsize=8)
def _resolve(impl: str, device: str) -> Impl:
    if impl == "auto":
        logger.info("frequency_attention on %s runs impl='eager'", device)
        return "eager"
    return impl  # type: ignore[return-value]
