"""The rows of benchmarks/distributed.py: what each builds, calls and measures.

A row is measured `on` one GPU, by the first rank while the others wait, or on all ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import distributed as dist

from distributed_measure import DEVICE, WITHOUT, Host, On, measured
from freqformer.attention import FreqAttention
from freqformer.config import FreqFormerConfig
from freqformer.distributed import ContextParallel, parallelize, shard_tokens
from freqformer.distributed.weights import shard_weights
from freqformer.grid import Grid, tile_layout

Row = Callable[[Host], dict[str, Any]]
"""What a row measures on a host's GPUs."""
CONFIGS = {"default": FreqFormerConfig(), "paper": FreqFormerConfig.paper()}


CLIP = Grid(21, 45, 80)
"""75,600 tokens."""
LONG_CLIP = Grid(84, 45, 80)
"""302,400 tokens."""


@dataclass(frozen=True)
class Sizes:
    """How large what is measured is."""

    heads: int = 24
    head_dim: int = 128
    grids: tuple[Grid, ...] = (Grid(64, 64, 64), Grid(128, 64, 64), Grid(256, 64, 64))
    """262,144, 524,288 and 1,048,576 tokens; the middle one for passes that one GPU has no memory
    for at the longest."""
    messages: tuple[int, ...] = tuple(1 << power for power in range(20, 32))
    """Bytes that a rank sends in an all-to-all, to itself included."""
    rounds: int = 5
    model: dict[str, Any] = field(
        default_factory=lambda: {"num_layers": 30, "num_attention_heads": 40}
    )
    """9.7 billion weights: with gradients and AdamW's moments in float32 155 GB."""
    clip: Grid = CLIP
    wan: dict[str, Any] = field(default_factory=lambda: {"num_attention_heads": 40})
    """The width of Wan-14B."""
    wan_grid: Grid = LONG_CLIP


TINY = Sizes(
    heads=4,
    head_dim=16,
    grids=(Grid(4, 8, 8), Grid(8, 8, 8)),
    messages=(1 << 10, 1 << 14),
    rounds=1,
    model={"num_layers": 2, "num_attention_heads": 4, "attention_head_dim": 16},
    clip=Grid(3, 4, 6),
    wan={"num_attention_heads": 4, "attention_head_dim": 16, "ffn_dim": 32, "text_dim": 16},
    wan_grid=Grid(4, 6, 8),
)
"""To try the commands on a CPU."""


def all_rows(sizes: Sizes) -> dict[str, Row]:
    """Every row by its name, in the order in which they are measured: what several GPUs are held to
    at first, and one GPU before all, which then find its kernels compiled."""
    shortest, *longer = sizes.grids
    rows: dict[str, Row] = {"links": partial(links, sizes)}
    for backward in (False, True):
        rows |= _layer_rows(sizes, "default", shortest, backward, ("one", "all"))
    for backward in (False, True):
        rows |= _layer_rows(sizes, "paper", shortest, backward, ("one", "all", "in-order"))
    for on in ("one", "all"):
        rows[f"wan-{on}"] = partial(wan, sizes, on)
    # All first: there memory lasts, as it should.
    for on in ("all", "one"):
        rows[f"training-{on}"] = partial(training, sizes, on)
    for backward in (False, True):
        rows |= _layer_rows(sizes, "default", longer[-1], backward, ("one", "all"))
    for name in CONFIGS:
        # What the two methods are held to: no wait that nothing hides, and heads dealt by cost.
        without = "waited" if name == "default" else "in-order"
        for grid in (shortest, *longer[::-1]):
            for backward in (True, False):
                rows |= _layer_rows(sizes, name, grid, backward, ("one", "all", without))
    return rows


def _layer_rows(
    sizes: Sizes, name: str, grid: Grid, backward: bool, how: tuple[str, ...]
) -> dict[str, Row]:
    """Rows of one layer: on one GPU, on all, or on all without what is compared with."""
    key = f"{name}-{grid.num_tokens}-{'backward' if backward else 'forward'}"
    make = partial(layer, sizes, name, grid, backward)
    given: dict[str, Row] = {"one": partial(make, "one"), "all": partial(make, "all")}
    return {f"{key}-{one}": given.get(one) or partial(make, "all", without=one) for one in how}


# The rows


def links(sizes: Sizes, host: Host) -> dict[str, Any]:
    """Bytes a second that a rank sends to others in an all-to-all, by the size of the message."""
    messages, ranks = [], dist.get_world_size()
    for size in sizes.messages:
        sent = torch.zeros(size // 2, dtype=torch.bfloat16, device=DEVICE)
        received = torch.empty_like(sent)
        exchange_once = partial(dist.all_to_all_single, received, sent)
        made = partial(_as_made, exchange_once)
        found = measured(made, "all", 4 * sizes.rounds, host, spans=False)
        away = size * (ranks - 1) / ranks
        messages.append({"bytes": size, "away_bytes": away, "ms": found["ms"]})
        messages[-1]["gb_per_s"] = away / found["ms"] / 1e6
    return {"kind": "links", "messages": messages}


def _as_made(call: Callable[[], object]) -> Callable[[], object]:
    return call


def layer(
    sizes: Sizes,
    name: str,
    grid: Grid,
    backward: bool,
    on: On,
    host: Host,
    *,
    without: str | None = None,
) -> dict[str, Any]:
    """A whole layer, forward or with its backward."""
    context = ContextParallel.of(host.mesh) if on == "all" else None
    with WITHOUT[without]():
        found = measured(
            partial(_layer_call, sizes, name, grid, backward, context), on, sizes.rounds, host
        )
    return {
        "kind": "layer",
        "config": name,
        "grid": grid.shape,
        "tokens": grid.num_tokens,
        "heads": sizes.heads,
        "head_dim": sizes.head_dim,
        "backward": backward,
        "on": on,
        "without": without,
        **found,
    }


def _layer_call(
    sizes: Sizes, name: str, grid: Grid, backward: bool, context: ContextParallel | None
) -> Callable[[], object]:
    torch.manual_seed(0)
    dim = sizes.heads * sizes.head_dim
    layer: Any = FreqAttention(dim, sizes.heads, CONFIGS[name]).to(DEVICE, torch.bfloat16)
    layer.router.float()
    layer.set_context(context)
    # Drawn whole so that shares differ as they do in a video; the same on every rank.
    hidden = torch.randn(1, grid.num_tokens, dim, device=DEVICE, dtype=torch.bfloat16)
    if context is not None:
        hidden = shard_tokens(hidden, tile_layout(grid), context).clone()
    hidden.requires_grad_(backward)
    timestep = torch.tensor([0.5], device=DEVICE)
    angle = torch.randn(grid.num_tokens, sizes.head_dim // 2, device=DEVICE)
    rotary = (angle.cos(), angle.sin())

    def call() -> None:
        with torch.set_grad_enabled(backward):
            out = layer(hidden, grid, timestep, rotary, token_order="tile")
        if backward:
            out.backward(torch.ones_like(out))

    return call


def training(sizes: Sizes, on: On, host: Host) -> dict[str, Any]:
    """An optimizer step with gradient checkpointing, for which one GPU has too little memory."""
    step = partial(_training_step, sizes, host.mesh if on == "all" else None)
    found = measured(step, on, 2, host)
    return {"kind": "training", "tokens": sizes.clip.num_tokens, "on": on, **sizes.model, **found}


def _training_step(sizes: Sizes, mesh: Any) -> Callable[[], object]:
    # Rows of layers need no diffusers.
    from freqformer.models.transformer import FreqFormerTransformer3DModel
    from freqformer.training.objective import flow_matching_loss

    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = FreqFormerTransformer3DModel(
            **{"in_channels": 16, "patch_size": (1, 2, 2), "attention_head_dim": 128, **sizes.model}
        )
    model.enable_gradient_checkpointing()
    if mesh is not None:
        parallelize(model, mesh)
        shard_weights(model, mesh, torch.bfloat16)
    # Fused: the other kinds hold one more copy of the weights while they step.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    shape = (1, 16, sizes.clip.num_frames, 2 * sizes.clip.height, 2 * sizes.clip.width)
    clip = torch.randn(shape, device=DEVICE)
    noise = torch.randn_like(clip)
    timestep = torch.tensor([0.5], device=DEVICE)

    def step() -> None:
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = flow_matching_loss(model, clip, timestep, noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def wan(sizes: Sizes, on: On, host: Host) -> dict[str, Any]:
    """A block of Wan by the plug-in, with patches in and out."""
    found = measured(partial(_wan_call, sizes, on == "all"), on, sizes.rounds, host)
    return {"kind": "wan", "tokens": sizes.wan_grid.num_tokens, "on": on, **found}


def _wan_call(sizes: Sizes, shared: bool) -> Callable[[], object]:
    from diffusers import ContextParallelConfig  # pyright: ignore[reportPrivateImportUsage]
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    from freqformer.integrations.diffusers import enable_frequency_attention
    from freqformer.routing import RoutingTable

    torch.manual_seed(0)
    settings: dict[str, Any] = {"attention_head_dim": 128, "text_dim": 4096, **sizes.wan}
    with torch.device(DEVICE):
        model: Any = WanTransformer3DModel(num_layers=1, **settings).bfloat16().eval()
    if shared:
        if DEVICE == "cpu":
            torch.accelerator.device_count = lambda: 1  # diffusers divides by the number of GPUs
        degree = dist.get_world_size()
        model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=degree))
    config = replace(FreqFormerConfig(), tile=tile_layout(sizes.wan_grid).tile)
    bands = torch.full((1, 1, settings["num_attention_heads"]), 2)
    table = RoutingTable(bands, torch.full_like(bands, config.mid_tiles or 0), config.for_plan())
    enable_frequency_attention(model, table)
    frames, height, width = sizes.wan_grid.shape
    given = {"device": DEVICE, "dtype": torch.bfloat16}
    video = torch.randn(1, 16, frames, 2 * height, 2 * width, **given)
    text = torch.randn(1, 512, settings["text_dim"], **given)
    timestep = torch.tensor([500.0], device=DEVICE)

    def call() -> None:
        with torch.no_grad():
            model(video, timestep, text, return_dict=False)

    return call
