"""Several GPUs of one host beside one of them: whole layers that share a video, heads dealt by cost
or in order, a training step that one GPU has no memory for, and a block of Wan in diffusers.

Needs as many GPUs as ranks, and NCCL:

    PYTHONPATH=src:. torchrun --nproc-per-node 2 benchmarks/distributed.py [--rows layers ...]

Writes distributed.json after every row: milliseconds are the slowest rank's, medians over `ROUNDS`;
`nccl_ms` is the profiler's sum of NCCL's kernels, and `times_one` is one GPU's time over that of
all. One GPU's rows run on rank 0 while the others wait.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

import record
from freqformer.attention import FreqAttention, parallel
from freqformer.config import FreqFormerConfig
from freqformer.distributed import ContextParallel, make_mesh, parallelize, shard_tokens
from freqformer.distributed.mesh import launched_ranks
from freqformer.distributed.weights import shard_weights
from freqformer.grid import Grid, tile_layout

DEVICE = "cuda"
HEADS = 24
HEAD_DIM = 128
GRIDS = {262_144: Grid(64, 64, 64), 1_048_576: Grid(256, 64, 64)}
CONFIGS = {"default": FreqFormerConfig(), "paper": FreqFormerConfig.paper()}
MESSAGES_MIB = (16, 64, 256, 1024)
ROUNDS = 5
TRAINED: dict[str, Any] = {
    "in_channels": 16,
    "patch_size": (1, 2, 2),
    "num_layers": 30,
    "num_attention_heads": 40,
    "attention_head_dim": 128,
}
"""12 billion weights: with AdamW's moments and gradients in float32 more than one card holds."""
TRAINED_GRID = Grid(21, 45, 80)
WAN: dict[str, Any] = {"num_layers": 1, "num_attention_heads": 40, "attention_head_dim": 128}
WAN_GRID = Grid(84, 45, 80)
"""302,400 tokens, of Wan-14B's width."""


def slowest_ms(call: Callable[[], object], ranks: bool = True) -> float:
    """Median milliseconds of a call on the slowest rank, or on this one alone."""
    if ranks:
        dist.barrier()
    own = torch.tensor(record.median_ms(call, repeats=ROUNDS, warmup=2), device=DEVICE)
    if ranks:
        dist.all_reduce(own, dist.ReduceOp.MAX)
    return float(own)


def nccl_ms(call: Callable[[], object]) -> float:
    """Milliseconds of NCCL's kernels in one call, on this rank."""
    return sum(time for name, time in record.launches(call) if "nccl" in name.lower()) / 1e3


def on_one(call: Callable[[], float]) -> float | None:
    """What rank 0 alone measures; None where it has too little memory, and on the others."""
    measured: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            measured[0] = call()
        except torch.cuda.OutOfMemoryError:
            measured[0] = None
    forget()
    dist.barrier()
    dist.broadcast_object_list(measured, src=0)
    return measured[0]


def forget() -> None:
    """Give memory back between rows."""
    gc.collect()
    torch.cuda.empty_cache()


def links() -> list[dict[str, float]]:
    """Bytes a second that a GPU sends to others in an all-to-all."""
    rows = []
    ranks = dist.get_world_size()
    for size in MESSAGES_MIB:
        sent = torch.empty(size << 19, dtype=torch.bfloat16, device=DEVICE)
        received = torch.empty_like(sent)
        taken = slowest_ms(lambda a=received, b=sent: dist.all_to_all_single(a, b))
        away = 2 * len(sent) * (ranks - 1) / ranks
        rows.append({"mib": size, "ms": taken, "gb_per_s": away / taken / 1e6})
    return rows


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


def layer_calls(
    config: FreqFormerConfig, grid: Grid, context: ContextParallel | None
) -> dict[str, Callable[[], object]]:
    """A layer's forward, and with backward, over all tokens or this rank's."""
    torch.manual_seed(0)
    dim = HEADS * HEAD_DIM
    layer: Any = FreqAttention(dim, HEADS, config).to(DEVICE, torch.bfloat16)
    layer.router.float()
    layer.set_context(context)
    hidden = torch.randn(1, grid.num_tokens, dim, device=DEVICE, dtype=torch.bfloat16)
    if context is not None:
        hidden = shard_tokens(hidden, tile_layout(grid), context).clone()
    hidden.requires_grad_()
    timestep = torch.tensor([0.5], device=DEVICE)
    angle = torch.randn(grid.num_tokens, HEAD_DIM // 2, device=DEVICE)
    rotary = (angle.cos(), angle.sin())

    def run() -> Tensor:
        return layer(hidden, grid, timestep, rotary, token_order="tile")

    def forward() -> None:
        with torch.no_grad():
            run()

    def both() -> None:
        run().sum().backward()

    return {"forward": forward, "with backward": both}


def layers(mesh: Any) -> Iterator[dict[str, Any]]:
    """The default and the source's method, whose heads are dealt by cost and in order."""
    context = ContextParallel.of(mesh)
    for name, config in CONFIGS.items():
        for tokens, grid in GRIDS.items():
            for which in ("forward", "with backward"):
                one = on_one(
                    lambda c=config, g=grid, w=which: slowest_ms(layer_calls(c, g, None)[w], False)
                )
                shared = layer_calls(config, grid, context)[which]
                row = {"row": f"layer {name}", "tokens": tokens, "pass": which, "one_ms": one}
                row |= {"ms": slowest_ms(shared), "nccl_ms": nccl_ms(shared)}
                if name == "paper":
                    with heads_in_order():
                        row["in_order_ms"] = slowest_ms(shared)
                row["times_one"] = None if one is None else one / row["ms"]
                del shared
                forget()
                yield row


def training_step(mesh: Any) -> Callable[[], object]:
    """One optimizer step of `TRAINED` with gradient checkpointing; on one GPU without a mesh."""
    # Rows of layers need no diffusers.
    from freqformer.models.transformer import FreqFormerTransformer3DModel
    from freqformer.training.objective import flow_matching_loss

    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = FreqFormerTransformer3DModel(**TRAINED)
    model.enable_gradient_checkpointing()
    if mesh is not None:
        parallelize(model, mesh)
        shard_weights(model, mesh, torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    shape = (1, 16, TRAINED_GRID.num_frames, 2 * TRAINED_GRID.height, 2 * TRAINED_GRID.width)
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


def training(mesh: Any) -> Iterator[dict[str, Any]]:
    """A step that one GPU has no memory for."""
    one = on_one(lambda: slowest_ms(training_step(None), False))
    step = training_step(mesh)
    row = {"row": "training step", "tokens": TRAINED_GRID.num_tokens, "one_ms": one}
    torch.cuda.reset_peak_memory_stats()
    row |= {"ms": slowest_ms(step), "nccl_ms": nccl_ms(step)}
    yield row | {"peak_gib": torch.cuda.max_memory_allocated() / 2**30}


def wan_call(mesh: Any) -> Callable[[], object]:
    """One block of Wan with frequency attention, and patches in and out."""
    from diffusers import ContextParallelConfig  # pyright: ignore[reportPrivateImportUsage]
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    from freqformer.integrations.diffusers import enable_frequency_attention
    from freqformer.routing import RoutingTable

    torch.manual_seed(0)
    with torch.device(DEVICE):
        model: Any = WanTransformer3DModel(**WAN).bfloat16().eval()
    if mesh is not None:
        degree = dist.get_world_size()
        model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=degree))
    config = replace(FreqFormerConfig(), tile=tile_layout(WAN_GRID).tile)
    bands = torch.full((1, 1, WAN["num_attention_heads"]), 2)
    table = RoutingTable(bands, torch.full_like(bands, config.mid_tiles or 0), config.for_plan())
    enable_frequency_attention(model, table)
    frames, height, width = WAN_GRID.shape
    video = torch.randn(1, 16, frames, 2 * height, 2 * width, device=DEVICE, dtype=torch.bfloat16)
    text = torch.randn(1, 512, 4096, device=DEVICE, dtype=torch.bfloat16)
    timestep = torch.tensor([500.0], device=DEVICE)

    def call() -> None:
        with torch.no_grad():
            model(video, timestep, text, return_dict=False)

    return call


def wan(mesh: Any) -> Iterator[dict[str, Any]]:
    """A block of Wan-14B's width by the plug-in."""
    one = on_one(lambda: slowest_ms(wan_call(None), False))
    shared = wan_call(mesh)
    row = {"row": "Wan block", "tokens": WAN_GRID.num_tokens, "one_ms": one}
    row |= {"ms": slowest_ms(shared), "nccl_ms": nccl_ms(shared)}
    yield row | {"times_one": None if one is None else one / row["ms"]}


ROWS = {"layers": layers, "training": training, "wan": wan}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", nargs="+", choices=[*ROWS], default=[*ROWS])
    parser.add_argument("--output", type=Path, default=record.RESULTS)
    parser.add_argument("--commit")
    options = parser.parse_args()
    mesh = make_mesh(cp=launched_ranks())
    results: dict[str, Any] = {"ranks": dist.get_world_size(), "links": links(), "rows": []}
    for name in options.rows:
        for row in ROWS[name](mesh):
            results["rows"].append(row)
            if dist.get_rank() == 0:
                print(row, flush=True)
                record.save("distributed", results, options.output, options.commit)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
