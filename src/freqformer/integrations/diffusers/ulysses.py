"""Frequency attention in a transformer whose tokens diffusers has shared among ranks.

diffusers cuts tokens in raster order into shares, evenly or as `tensor_split` does, and each layer
gets its own. Shape legend: B batch, n tokens of a rank, H heads, D head_dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from freqformer.attention import frequency_attention
from freqformer.config import FreqFormerConfig
from freqformer.distributed import ContextParallel, deal_heads
from freqformer.distributed.exchange import Route, to_heads, to_tokens
from freqformer.grid import Grid
from freqformer.ops.parameters import KnownBands
from freqformer.plan import build_plan


def class_name(transformer: Any) -> str:
    """The name of a model's class, without the one that FSDP2 puts in front of it."""
    kind = type(transformer)
    sharded = kind.__name__ == f"FSDP{kind.__bases__[-1].__name__}"
    return kind.__bases__[-1].__name__ if sharded else kind.__name__


def ulysses_of(parallel: Any) -> ContextParallel | None:
    """The ranks that share the tokens, by what `enable_parallelism` set; None for one GPU.

    Raises:
        ValueError: for ring attention, and for other kinds of parallelism.
    """
    if parallel is None:
        return None
    settings = getattr(parallel, "context_parallel_config", None)
    if settings is None or getattr(parallel, "tensor_parallel_config", None) is not None:
        raise ValueError(
            "the transformer has a parallel configuration of another kind, and context parallelism "
            "by Ulysses is allowed: enable_parallelism(config=ContextParallelConfig("
            "ulysses_degree=N))"
        )
    if settings.ring_degree > 1:
        raise ValueError(
            f"ring_degree is {settings.ring_degree}, and 1 is allowed with frequency attention: a "
            "ring shows a rank some keys at a time, while bands need tiles of the whole video; "
            "take ulysses_degree"
        )
    mesh = settings._ulysses_mesh
    return ContextParallel(mesh.get_group(), mesh.size(), mesh.get_local_rank())


def attend_shared(
    qkv: tuple[Tensor, Tensor, Tensor],
    context: ContextParallel | None,
    *,
    grid: Grid,
    allocation: KnownBands,
    config: FreqFormerConfig,
    **named: Any,
) -> Tensor:
    """As `frequency_attention`, over this rank's tokens (B, n, H, D) where ranks share them.

    Args:
        qkv: query, key and value.
        context: of `ulysses_of`.
        grid, allocation, config, named: as there.

    Raises:
        ValueError: for text beside the video, another share than diffusers cuts, and more ranks
            than heads.
    """
    if context is None:
        return frequency_attention(*qkv, grid=grid, allocation=allocation, config=config, **named)
    shares = _shares(grid.num_tokens, context.size)
    heads = qkv[0].shape[2]
    _check(qkv[0], shares, context, named.get("num_text_tokens", 0))
    plan = build_plan(grid, config, num_heads=heads, head_dim=qkv[0].shape[3])
    by_band = torch.tensor(plan.band_costs(), dtype=torch.float64)
    costs = by_band.to(allocation.bands.device)[allocation.bands.long()].sum(0)
    route = Route(context, shares, deal_heads(costs, context.size))
    own = KnownBands(allocation.bands.index_select(1, route.own_heads), allocation.present)
    out = frequency_attention(
        *to_heads(qkv, route), grid=grid, allocation=own, config=config, **named
    )
    return to_tokens(out, route)


def _shares(num_tokens: int, ranks: int) -> tuple[int, ...]:
    """Tokens of every rank, as `tensor_split` cuts them."""
    even, left = divmod(num_tokens, ranks)
    return tuple(even + (rank < left) for rank in range(ranks))


def _check(
    query: Tensor, shares: tuple[int, ...], context: ContextParallel, num_text_tokens: int
) -> None:
    if num_text_tokens:
        raise ValueError(
            f"num_text_tokens is {num_text_tokens} and ranks share the tokens; 0 is allowed: "
            "models that attend to video and text together run on one GPU"
        )
    if query.shape[1] != shares[context.rank]:
        raise ValueError(
            f"a layer was given {query.shape[1]} tokens on rank {context.rank}; "
            f"{shares[context.rank]} are allowed, the model's own share: leave out cp_plan"
        )
    if context.size > query.shape[2]:
        raise ValueError(
            f"ulysses_degree is {context.size} and the layers have {query.shape[2]} heads; degrees "
            f"up to {query.shape[2]} are allowed, since every rank computes whole heads"
        )
