"""The live router in two Triton launches: the host side.

The first takes the statistics of a sample of tiles, the second runs the network and chooses. A
network that is given no statistics needs the second alone. While the router trains, the first alone
is used, since statistics carry no gradient. Shape legend: B batch, N video tokens, H heads, D
head_dim, C = H * D channels, S sampled tiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from freqformer.buffers import power_of_two
from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid
from freqformer.ops.architectures import architecture
from freqformer.ops.routing import reference
from freqformer.ops.routing.tables import sample_tables
from freqformer.ops.routing.triton.forward import (
    VALUES,
    Features,
    Layer,
    Network,
    Norms,
    Sample,
    Scales,
    Scores,
    Timesteps,
    score_heads,
    sum_tiles,
)
from freqformer.routing import RoutingNetwork
from freqformer.routing.network import FASTEST, STATISTIC_SCALE
from freqformer.routing.statistics import (
    FLOOR,
    NUM_STATISTICS,
    SampleOrder,
    statistics_of_means,
)

REGISTERS = 168
"""Of a thread of four warps, so that a multiprocessor holds three programs."""


@torch.no_grad()
def statistics(
    features: reference.Features,
    norms: reference.Norms,
    eps: float,
    grid: Grid,
    config: FreqFormerConfig,
    token_order: SampleOrder,
) -> Tensor:
    """As `reference.statistics`, in one launch and a few small operations."""
    query, key, hidden = _sums(features, norms, eps, grid, config, token_order).sum(-1).split(3, 1)
    return statistics_of_means(query.mT, key.mT, hidden.mean(-1))


@torch.no_grad()
def score(
    network: RoutingNetwork, timestep: Tensor, inputs: reference.Inputs | None
) -> tuple[Tensor, Tensor]:
    """Logits and the best bands of a layer's heads, without gradients: two launches, and nothing
    waits for the device.

    Args:
        network: the layer's router.
        timestep: (B,) in [0, 1].
        inputs: of `reference.statistics`; C must be H * D. None where the network is made without
            statistics.

    Returns: logits float32 (B, H, 3), and bands int64 (B, H), the first of the largest.

    Raises:
        ValueError: for an input of another width.
    """
    logits, bands, _ = _launched(network, timestep, inputs, None)
    return logits, bands


@torch.no_grad()
def weigh(
    network: RoutingNetwork, timestep: Tensor, inputs: reference.Inputs | None, own: Tensor
) -> tuple[Tensor, Tensor]:
    """As `score`, with weights of two branches in place of the best bands, in the same launches.

    Args:
        network, timestep, inputs: as `score` takes them.
        own: the band of every head, LOW, MID or HIGH: int64 (H,).

    Returns: logits float32 (B, H, 3), and `branch_weights` float32 (B, 2, H).
    """
    logits, _, weights = _launched(network, timestep, inputs, own)
    return logits, weights


def _launched(
    network: RoutingNetwork, timestep: Tensor, inputs: reference.Inputs | None, own: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, the best bands, and weights of branches, which are empty without own bands."""
    sums = None if inputs is None else _sums(*inputs)

    def launch(weights: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ops.freqformer.score_heads(
            sums, timestep, weights, network.prior_strength, own
        )

    return network(None, timestep, launch=launch)


def _sums(
    features: reference.Features,
    norms: reference.Norms,
    eps: float,
    grid: Grid,
    config: FreqFormerConfig,
    token_order: SampleOrder,
) -> Tensor:
    query, key, hidden = (x if x.stride(-1) == 1 else x.contiguous() for x in features)
    _, _, heads, head_dim = query.shape
    _, _, channels = hidden.shape
    if channels != heads * head_dim:
        raise ValueError(
            f"features: the layer's input has {channels} channels; {heads} heads "
            f"of {head_dim} are "
            "allowed: use reference.statistics for another width"
        )
    tables = sample_tables(grid, config, token_order, query.device, (query.dtype, hidden.dtype))
    return torch.ops.freqformer.sum_tiles(query, key, hidden, *norms, *tables, eps)


# A layer's graph holds both launches: its router is no part of `freqformer::attention`, so that
# torch.compile meets them, and can trace a custom operation but not a launch that reads pointers.
@torch.library.custom_op(
    "freqformer::sum_tiles",
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor hidden, Tensor? query_norm, Tensor? key_norm, "
    "Tensor places, Tensor kind, Tensor weights, Tensor token_transform, Tensor input_transform, "
    "float eps) -> Tensor",
)
def _sum_tiles(
    query: Tensor,
    key: Tensor,
    hidden: Tensor,
    query_norm: Tensor | None,
    key_norm: Tensor | None,
    places: Tensor,
    kind: Tensor,
    weights: Tensor,
    token_transform: Tensor,
    input_transform: Tensor,
    eps: float,
) -> Tensor:
    """`sample_tables` are the five tensors from `places` on."""
    sums = _empty_sums(query, places)
    batch, _, heads, head_dim = query.shape
    width = power_of_two(head_dim)
    tiles, slots = places.shape
    hidden = hidden.unflatten(2, (heads, -1))
    small = width <= 128 and all(x.element_size() == 2 for x in (query, key, hidden))
    sum_tiles[(heads, tiles, 3 * batch)](
        _features(query),
        _features(key),
        _features(hidden),
        Norms(query=query_norm, key=key_norm, eps=eps),
        Sample(
            places=places,
            kind=kind,
            weights=weights,
            token_transform=token_transform,
            input_transform=input_transform,
        ),
        sums,
        SLOTS=slots,
        D=head_dim,
        W=width,
        num_warps=4 if small else 8,  # pyright: ignore[reportCallIssue]
        num_stages=1,  # pyright: ignore[reportCallIssue]
        # Measured on Hopper; other NVIDIA GPUs would spill, and AMD's compiler takes no limit.
        **({"maxnreg": REGISTERS} if small and architecture(query.device).is_hopper else {}),
    )
    return sums


@_sum_tiles.register_fake
def _(query, key, hidden, query_norm, key_norm, places, *_):
    return _empty_sums(query, places)


def _features(x: Tensor) -> Features:
    sample, token, head, _ = x.stride()
    return Features(base=x, sample=sample, token=token, head=head)


def _empty_sums(query: Tensor, places: Tensor) -> Tensor:
    batch, _, heads, _ = query.shape
    return query.new_empty(batch, VALUES.value, heads, len(places), dtype=torch.float32)


@torch.library.custom_op(
    "freqformer::score_heads",
    mutates_args=(),
    schema="(Tensor? sums, Tensor timestep, Tensor[] weights, float lean, Tensor? own) "
    "-> (Tensor, Tensor, Tensor)",
)
def _score_heads(
    sums: Tensor | None,
    timestep: Tensor,
    weights: Sequence[Tensor],
    lean: float,
    own: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`weights` are the embedding and bias of heads, then weight and bias of each layer; `lean` is
    the prior's strength, and `own` the bands whose logits weigh branches."""
    logits, bands, branches = _empty_scores(timestep, weights, own)
    batch, heads = bands.shape
    tiles, known = (1, 0) if sums is None else (sums.shape[-1], NUM_STATISTICS)
    embedding, head_bias, first, first_bias, second, second_bias, last, last_bias = (
        x.contiguous() for x in weights
    )
    hidden, inputs = first.shape
    _, width = embedding.shape
    time = inputs - width - known
    score_heads[(heads, batch)](
        sums,
        Timesteps(base=timestep, stride=timestep.stride(0)),
        Network(
            first=Layer(first, first_bias),
            second=Layer(second, second_bias),
            last=Layer(last, last_bias),
            embedding=embedding,
            head_bias=head_bias,
        ),
        Scores(
            logits=logits,
            bands=bands,
            own=None if own is None else own.contiguous(),
            branches=None if own is None else branches,
        ),
        Scales(
            floor=FLOOR,
            statistic=STATISTIC_SCALE,
            fastest=FASTEST,
            fall=math.log(10_000) / (time // 2),
            lean=lean,
        ),
        tiles,
        TILES=power_of_two(tiles),
        ROWS=power_of_two(tiles * heads),
        KNOWN=known,
        HIDDEN=hidden,
        HIDDEN_BLOCK=power_of_two(hidden),
        TIME=time,
        EMBEDDING=width,
        STATIC_BLOCK=power_of_two(inputs - known),
        num_warps=4,  # pyright: ignore[reportCallIssue]
    )
    return logits, bands, branches


@_score_heads.register_fake
def _(sums, timestep, weights, lean, own):
    return _empty_scores(timestep, weights, own)


def _empty_scores(
    timestep: Tensor, weights: Sequence[Tensor], own: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    embedding, *_ = weights
    shape = (len(timestep), len(embedding))
    logits = timestep.new_empty(*shape, 3, dtype=torch.float32)
    branches = timestep.new_empty(
        0 if own is None else (len(timestep), 2, len(embedding)), dtype=torch.float32
    )
    return logits, timestep.new_empty(shape, dtype=torch.int64), branches
