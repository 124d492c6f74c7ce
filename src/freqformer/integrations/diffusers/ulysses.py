"""Frequency attention in a transformer whose tokens diffusers has shared among ranks.

diffusers cuts tokens in raster order into shares, evenly or as `tensor_split` does, and each layer
gets its own. Shape legend: B batch, n tokens of a rank, H heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from freqformer.attention import frequency_attention
from freqformer.attention.record import CallRecord, RecordedBands
from freqformer.config import FreqFormerConfig
from freqformer.distributed import ContextParallel, deal_heads
from freqformer.distributed.collective import GRAPHS_HOLD_EXCHANGES
from freqformer.distributed.exchange import (
    Route,
    Sent,
    at_heads,
    at_tokens,
    num_messages,
    send_to_heads,
    send_to_tokens,
)
from freqformer.distributed.heads import head_costs, plan_costs
from freqformer.grid import Grid
from freqformer.integrations.diffusers.query_key import Queries
from freqformer.ops.head_blocks.api import prepared_blocks
from freqformer.ops.parameters import AttentionParameters, KnownBands, RotaryEmbedding
from freqformer.ops.query_key import normalised, rotated
from freqformer.plan import build_plan
from freqformer.tracing import untraced

LARGE_BYTES = 2**28
"""Of queries whose heads are computed in parts; chosen, not measured."""
HEAD_PARTS = 4
"""Queries, keys and values in tile order, with low tokens and summaries, take 3.3 to 3.6 times the
queries' memory for all heads at once, and less than once in four parts."""


def class_name(transformer: Any) -> str:
    """The name of a model's class, without the one that FSDP2 puts in front of it."""
    kind = type(transformer)
    own = kind.__bases__[-1].__name__ if kind.__bases__ else ""
    return own if kind.__name__ == f"FSDP{own}" else kind.__name__


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


def own_tables(
    tables: tuple[Tensor, ...], num_tokens: int, context: ContextParallel
) -> tuple[Tensor, ...]:
    """This rank's tokens of rotary tables (..., N, D), as diffusers cuts them; the same where it
    did.

    Args:
        tables: of all tokens, or of this rank's.
        num_tokens: N.
        context: of `ulysses_of`.
    """
    return tuple(
        table.tensor_split(context.size, -2)[context.rank]
        if table.shape[-2] == num_tokens
        else table
        for table in tables
    )


def attend_across(
    queries: Queries,
    project_values: Callable[[], Tensor],
    context: ContextParallel,
    finish: Callable[[Tensor, slice], Tensor],
    *,
    grid: Grid,
    allocation: KnownBands | RecordedBands,
    config: FreqFormerConfig | None = None,
    num_text_tokens: int = 0,
    **named: Any,
) -> Tensor:
    """A layer over this rank's tokens (B, n, H, D), from projected queries and keys to what comes
    after attention.

    Queries travel while keys are normalised and turned, and both while values are projected. The
    output of large shares comes back in two parts, and the first is finished while the second
    travels.

    Args:
        queries: of this rank's tokens, with tables of these.
        project_values: makes their values.
        context: of `ulysses_of`.
        finish: what follows, of (B, m, C) that lie at this place among the rank's tokens.
        grid, allocation, config, num_text_tokens, named: as in `attend_around`.

    Raises:
        ValueError: for another share than diffusers cuts, and more ranks than heads.
    """
    find_route = partial(_route, context, grid, allocation, config, num_text_tokens)
    attend = partial(
        attend_around, grid=grid, config=config, num_text_tokens=num_text_tokens, **named
    )
    return _attend_across(queries, project_values, finish, find_route, attend, allocation)


def _attend_across(
    queries: Queries,
    project_values: Callable[[], Tensor],
    finish: Callable[[Tensor, slice], Tensor],
    find_route: Callable[[Tensor], Route],
    attend: Callable[..., Tensor],
    allocation: KnownBands | RecordedBands,
) -> Tensor:
    route = find_route(queries.query)
    given = queries.parameters
    sent = [
        _send(queries.query, given.query_norm, given, route),
        _send(queries.key, given.key_norm, given, route),
    ]
    sent.append(send_to_heads(project_values(), route))
    own = replace(allocation, bands=allocation.bands.index_select(1, route.own_heads))
    out = attend(tuple(at_heads(one) for one in sent), allocation=own)
    finished: list[Tensor] = []
    end = 0
    for returning in send_to_tokens(out, route, num_messages(route)):
        part = at_tokens(returning).flatten(2)
        start = end
        end += part.shape[1]
        finished.append(finish(part, slice(start, end)))
    return finished[0] if len(finished) == 1 else torch.cat(finished, 1)


def _send(x: Tensor, weight: Tensor | None, given: AttentionParameters, route: Route) -> Sent:
    """Send queries or keys, normalised and turned here, where a rank has all heads of its tokens:
    afterwards it has some heads of all tokens."""
    blocks = prepared_blocks(x, weight, given, route.order, route.num_heads)
    if blocks is not None:
        return send_to_heads(x, route, blocks)
    return send_to_heads(rotated(normalised(x, weight, given, x.shape[1]), given), route)


if not GRAPHS_HOLD_EXCHANGES:
    _attend_across = untraced(_attend_across)


def costs_by_band(record: CallRecord, device: torch.device) -> Tensor:
    """What a head costs as LOW, MID, HIGH and DENSE in the calls of a record, float64 (4,) on the
    device; of one channel, since all are proportional to the channels of a head."""
    return _costs_by_band(record, device)


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # what it caches must also serve training
def _costs_by_band(record: CallRecord, device: torch.device) -> Tensor:
    exact = record.num_text_tokens
    plan = build_plan(record.grid, record.config, num_heads=1, head_dim=1, num_text_tokens=exact)
    return torch.tensor(plan.band_costs(), dtype=torch.float64, device=device)


def _route(
    context: ContextParallel,
    grid: Grid,
    allocation: KnownBands | RecordedBands,
    config: FreqFormerConfig | None,
    exact: int,
    query: Tensor,
) -> Route:
    """Heads by what they cost, of shares as diffusers cuts them; `exact` tokens are no video's."""
    shares = _shares(grid.num_tokens + exact, context.size)
    _check(query, shares, context)
    _, _, heads, head_dim = query.shape
    if isinstance(allocation, RecordedBands):
        assert allocation.costs is not None
        costs = allocation.costs[allocation.bands.long()].sum(0)
    else:
        assert config is not None
        sizes = {"num_heads": heads, "head_dim": head_dim, "num_text_tokens": exact}
        costs = head_costs(plan_costs(grid, config, **sizes), allocation.bands)
    return Route(context, shares, deal_heads(costs, context.size))


def attend_around(
    qkv: tuple[Tensor, Tensor, Tensor],
    *,
    parameters: AttentionParameters | None = None,
    before: int = 0,
    **named: Any,
) -> Tensor:
    """As `frequency_attention`, whose exact tokens may come first: the operation itself knows them
    behind the video alone.

    Args:
        qkv: query, key and value (B, N, H, D).
        named: as there; `num_text_tokens` counts all exact tokens. `RecordedBands` are allowed too,
            and take the place of a config.
        parameters: norms and rotary embedding of the queries and keys; None for neither.
        before: exact tokens before the video.
    """
    if not before:
        return _attention(qkv, parameters=parameters, **named)
    query, key, value = (_moved(x, before) for x in qkv)
    if parameters is not None and parameters.rotation is not None:
        turn = parameters.rotation
        turn = RotaryEmbedding(_moved(turn.cos, before), _moved(turn.sin, before), turn.pairs)
        parameters = replace(parameters, rotary=turn)
    out = _attention((query, key, value), parameters=parameters, **named)
    return _moved(out, -before)


def _attention(
    qkv: tuple[Tensor, Tensor, Tensor],
    *,
    grid: Grid,
    allocation: KnownBands | RecordedBands,
    num_text_tokens: int = 0,
    config: FreqFormerConfig | None = None,
    **named: Any,
) -> Tensor:
    """The operation, with grid and config as constants of a graph or as its operand."""
    query, _, _ = qkv
    parts = head_parts(query)
    if isinstance(allocation, KnownBands):
        assert config is not None
        return frequency_attention(
            *qkv,
            grid=grid,
            allocation=allocation,
            config=config,
            num_text_tokens=num_text_tokens,
            head_parts=parts,
            **named,
        )
    # Imported here: registering an operation takes time, and most processes compile nothing.
    from freqformer.attention.record_operation import recorded_attention

    return recorded_attention(qkv, allocation=allocation, head_parts=parts, **named)


def head_parts(query: Tensor) -> int:
    """In how many parts heads are computed. In a compiled graph dense attention holds less than
    all heads' tiles do; outside of one it holds as much."""
    _, _, heads, _ = query.shape
    if not torch.compiler.is_compiling() or query.numel() * query.element_size() < LARGE_BYTES:
        return 1
    return min(HEAD_PARTS, heads)


def _moved(x: Tensor, before: int) -> Tensor:
    """The first tokens (axis 1) of x behind all others; the last before them where negative."""
    return torch.cat([x[:, before:], x[:, :before]], 1)


def _shares(num_tokens: int, ranks: int) -> tuple[int, ...]:
    """Tokens of every rank, as `tensor_split` cuts them."""
    even, left = divmod(num_tokens, ranks)
    return tuple(even + (rank < left) for rank in range(ranks))


def _check(query: Tensor, shares: tuple[int, ...], context: ContextParallel) -> None:
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
