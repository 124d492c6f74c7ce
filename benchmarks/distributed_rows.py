"""The rows of benchmarks/distributed.py: what each builds, calls and measures.

A row is measured `on` one GPU, by the first rank while the others wait, or on all ranks.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch import distributed as dist

import record
from freqformer.attention import FreqAttention, parallel
from freqformer.config import FreqFormerConfig
from freqformer.distributed import ContextParallel, exchange, parallelize, shard_tokens
from freqformer.distributed.collective import start_all_to_all, wait
from freqformer.distributed.weights import shard_weights
from freqformer.grid import Grid, tile_layout

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
On = Literal["one", "all"]
Row = Callable[[Any], dict[str, Any]]
"""What a row measures on a mesh of all ranks."""
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
    """Every row by its name, in the order in which they are measured."""
    rows: dict[str, Row] = {"links": partial(links, sizes)}
    for name in CONFIGS:
        # What the two methods are held to: no wait that nothing hides, and heads dealt by cost.
        without = "waited" if name == "default" else "in-order"
        for grid in sizes.grids:
            for backward in (False, True):
                key = f"{name}-{grid.num_tokens}-{'backward' if backward else 'forward'}"
                make = partial(layer, sizes, name, grid, backward)
                rows[f"{key}-one"] = partial(make, "one")
                rows[f"{key}-all"] = partial(make, "all")
                rows[f"{key}-{without}"] = partial(make, "all", without=without)
    for on in ("one", "all"):
        rows[f"training-{on}"] = partial(training, sizes, on)
        rows[f"wan-{on}"] = partial(wan, sizes, on)
    return rows


# Measuring


def median_ms(call: Callable[[], object], rounds: int) -> float:
    """Median milliseconds of a call on this rank."""
    if DEVICE == "cuda":
        return record.median_ms(call, repeats=rounds, warmup=2)
    call()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - began))
    return sorted(times)[len(times) // 2]


def measured(make: Callable[[], Callable[[], object]], on: On, rounds: int) -> dict[str, Any]:
    """Milliseconds of the slowest rank, what NCCL takes of them and what of that is hidden, and the
    largest peak; or that memory ran out."""
    found: dict[str, Any] = {}
    if on == "all" or dist.get_rank() == 0:
        try:
            found = _measured_here(make(), on, rounds)
        except torch.OutOfMemoryError as error:
            found = {"out_of_memory": str(error).split(". GPU")[0]}
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, found)
    return _of_all([one for one in told if one])


def _measured_here(call: Callable[[], object], on: On, rounds: int) -> dict[str, Any]:
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    if on == "all":
        dist.barrier()
    found: dict[str, Any] = {"ms": median_ms(call, rounds)}
    if DEVICE == "cuda":
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if on == "all":
            found |= communication(device_spans(call))
    return found


def _of_all(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The slowest rank's milliseconds, and the largest peak."""
    for one in found:
        if "out_of_memory" in one:
            return one
    slowest = max(found, key=lambda one: one["ms"])
    return slowest | {
        name: max(one[name] for one in found) for name in ("peak_gib",) if name in slowest
    }


Span = tuple[str, float, float]
"""Name, begin and end in microseconds of something that ran on the GPU."""


def device_spans(call: Callable[[], object]) -> list[Span]:
    """All that one call runs on this rank's GPU, by the profiler."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as recorded:
        call()
        torch.cuda.synchronize()
    return [
        (event.name, event.time_range.start, event.time_range.end)
        for event in recorded.events() or ()
        if event.device_type.name == "CUDA"
    ]


def communication(spans: list[Span]) -> dict[str, float]:
    """Milliseconds of NCCL's kernels, `nccl_ms`, and how many of them something else runs in,
    `hidden_ms`."""
    nccl = [(begin, end) for name, begin, end in spans if "nccl" in name.lower()]
    others = _merged([(begin, end) for name, begin, end in spans if "nccl" not in name.lower()])
    hidden = sum(
        max(0.0, min(end, other_end) - max(begin, other_begin))
        for begin, end in nccl
        for other_begin, other_end in others
    )
    return {
        "nccl_ms": sum(end - begin for begin, end in nccl) / 1e3,
        "hidden_ms": hidden / 1e3,
    }


def _merged(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same time in spans that don't overlap, in order."""
    merged: list[tuple[float, float]] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


# What is compared with: no overlap, and heads in order


@contextmanager
def waited() -> Iterator[None]:
    """All-to-alls are waited for where they start."""

    def start(*given: Any) -> Tensor:
        return wait(start_all_to_all(*given))

    exchange.start_all_to_all = start
    try:
        yield
    finally:
        exchange.start_all_to_all = start_all_to_all


@contextmanager
def heads_in_order() -> Iterator[None]:
    """Heads go to ranks as they are numbered, whatever they cost."""
    dealt = parallel.deal_heads

    def in_order(costs: Tensor, ranks: int) -> tuple[Tensor, ...]:
        return torch.arange(len(costs), device=costs.device).tensor_split(ranks)

    parallel.deal_heads = in_order
    try:
        yield
    finally:
        parallel.deal_heads = dealt


WITHOUT: dict[str | None, Callable[[], AbstractContextManager[None]]] = {
    None: nullcontext,
    "waited": waited,
    "in-order": heads_in_order,
}


# The rows


def links(sizes: Sizes, mesh: Any) -> dict[str, Any]:
    """Bytes a second that a rank sends to others in an all-to-all, by the size of the message."""
    messages, ranks = [], dist.get_world_size()
    for size in sizes.messages:
        sent = torch.zeros(size // 2, dtype=torch.bfloat16, device=DEVICE)
        received = torch.empty_like(sent)
        exchange_once = partial(dist.all_to_all_single, received, sent)
        found = measured(lambda call=exchange_once: call, "all", 4 * sizes.rounds)
        away = size * (ranks - 1) / ranks
        messages.append({"bytes": size, "away_bytes": away, "ms": found["ms"]})
        messages[-1]["gb_per_s"] = away / found["ms"] / 1e6
    return {"kind": "links", "messages": messages}


def layer(
    sizes: Sizes,
    name: str,
    grid: Grid,
    backward: bool,
    on: On,
    mesh: Any,
    *,
    without: str | None = None,
) -> dict[str, Any]:
    """A whole layer, forward or with its backward."""
    context = ContextParallel.of(mesh) if on == "all" else None
    with WITHOUT[without]():
        found = measured(
            partial(_layer_call, sizes, name, grid, backward, context), on, sizes.rounds
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


def training(sizes: Sizes, on: On, mesh: Any) -> dict[str, Any]:
    """An optimizer step with gradient checkpointing, for which one GPU has too little memory."""
    found = measured(partial(_training_step, sizes, mesh if on == "all" else None), on, 2)
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


def wan(sizes: Sizes, on: On, mesh: Any) -> dict[str, Any]:
    """A block of Wan by the plug-in, with patches in and out."""
    found = measured(partial(_wan_call, sizes, on == "all"), on, sizes.rounds)
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
