"""Layers and models on several ranks against one process, in float64: the largest error of each
quantity goes to FOLDER/errors-RANK.json. A script of `tests.support.ranks`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from tests.support.ranks import join
from torch import Tensor, nn
from torch import distributed as dist

from freqformer import FreqFormerConfig, Grid
from freqformer.attention import make_attention
from freqformer.distributed import (
    ContextParallel,
    exchange,
    gather_tokens,
    make_mesh,
    parallelize,
    shard_tokens,
    sum_gradients,
)
from freqformer.distributed.sample import gather_sample
from freqformer.grid import tile_layout
from freqformer.models.transformer import FreqFormerTransformer3DModel
from freqformer.routing import RoutingTable
from freqformer.routing.statistics import read_sample

SMALL = {"compression": 16, "window": (3, 1, 3), "mid_tiles": 2}
PAPER = replace(FreqFormerConfig.paper(), **SMALL, tile=(2, 2, 3), summary_tokens=6)
SOFT = FreqFormerConfig(**SMALL, tile=(2, 2, 3))
RAGGED = Grid(5, 4, 7)
HEADS = 6
HEAD_DIM = 8
TIMESTEP = torch.tensor([0.1, 0.5, 0.95])


Found = dict[str, Tensor | None]
"""Tensors by what they are, gradients by the names of their weights."""


class Case:
    """A layer, the grid of its videos, and what is done to it before it is called."""

    def __init__(
        self,
        config: FreqFormerConfig,
        grid: Grid = RAGGED,
        heads: int = HEADS,
        prepare: Callable[[Any], None] | None = None,
    ) -> None:
        self.config, self.grid, self.heads, self.prepare = config, grid, heads, prepare

    def layer(self) -> Any:
        torch.manual_seed(0)
        layer = make_attention(self.heads * HEAD_DIM, self.heads, self.config).double()
        with torch.no_grad():
            for name, parameter in layer.named_parameters():
                # Gates start at zero, where much has no gradient.
                if not name.startswith("router.layers"):
                    parameter.add_(0.3 * torch.randn_like(parameter))
            if layer.chooses:
                # So that statistics and timesteps lead, and samples get bands of their own.
                layer.router.layers[-1].weight.mul_(30)
                layer.router.head_bias.copy_(2 * torch.randn(self.heads, 3))
        if self.prepare is not None:
            self.prepare(layer)
        return layer


def use_table(layer: Any) -> None:
    bands = torch.tensor([[[0, 1, 2, 2, 1, 3]], [[2, 2, 2, 2, 2, 0]]])
    kept = torch.tensor([2, 3])[:, None, None].expand_as(bands)
    layer.set_routing_table(RoutingTable(bands, kept.contiguous(), layer.config))


LAYERS = {
    "default": Case(replace(SOFT, tile=None)),
    "soft, pinned tile": Case(SOFT),
    "timestep": Case(replace(SOFT, routing="timestep")),
    "mixed bands": Case(replace(SOFT, allocation="thirds")),
    "paper": Case(PAPER),
    "paper, all branches": Case(PAPER, prepare=lambda layer: layer.set_router_training("all")),
    "paper, sampled": Case(PAPER, prepare=lambda layer: layer.set_router_training("sampled")),
    "paper, budget": Case(PAPER, prepare=lambda layer: layer.set_flop_budget(0.6)),
    "paper, low branch": Case(
        replace(PAPER, low_branch=True), prepare=lambda layer: layer.set_router_training("all")
    ),
    "gains": Case(replace(PAPER, band_features="band_gains")),
    "fixed": Case(replace(SOFT, routing="fixed", low_branch=False, allocation="thirds")),
    "one LOW head of many": Case(
        replace(PAPER, routing="fixed", prior="none", allocation=(0, 0, 0, 3, 0, 0))
    ),
    "table": Case(replace(SOFT, mid_tiles=2), prepare=use_table),
    "dense": Case(FreqFormerConfig.dense()),
    "dense on demand": Case(SOFT, prepare=lambda layer: layer.set_dense(True)),
    "prime sides": Case(replace(PAPER, tile=None), grid=Grid(7, 5, 11)),
    "one tile": Case(PAPER, grid=Grid(1, 2, 3)),
    "three tiles": Case(replace(SOFT, tile=(1, 2, 3)), grid=Grid(3, 2, 3)),
    "still picture": Case(replace(PAPER, tile=None), grid=Grid(1, 9, 13)),
    "five heads": Case(replace(SOFT, allocation="thirds"), heads=5),
}


def layer_errors(case: Case, mesh: Any) -> dict[str, float]:
    grid, context = case.grid, ContextParallel.of(mesh)
    layout = tile_layout(grid, case.config.tile)
    draw = torch.Generator().manual_seed(1)
    tokens = torch.randn(
        3, grid.num_tokens, case.heads * HEAD_DIM, generator=draw, dtype=torch.float64
    )
    # Samples of other spectra, so that a router gives them other bands.
    tokens[1] = tokens[1].cumsum(0) / 4
    angle = 6 * torch.rand(grid.num_tokens, HEAD_DIM // 2, generator=draw, dtype=torch.float64)
    rotary = (angle.cos(), angle.sin())
    weight = torch.randn(tokens.shape, generator=draw, dtype=torch.float64)

    def run(layer: Any, given: Tensor, whole: Callable[[Tensor], Tensor]) -> Found:
        given.requires_grad_()
        torch.manual_seed(5)
        out = whole(layer(given, grid, TIMESTEP, rotary, token_order="tile"))
        loss = (out * weight).sum()
        if layer.router_logits is not None:
            loss = loss + layer.router_logits.square().sum()
        loss.backward()
        return {
            "output": out.detach(),
            "input": given.grad,
            "bands": layer.allocation_used,
            "logits": None if layer.router_logits is None else layer.router_logits.detach(),
        }

    def alone() -> Found:
        layer = case.layer()
        return run(layer, tokens.clone(), lambda x: x) | gradients(layer)

    expected = by_first_rank(alone)
    expected["input"] = shard_tokens(expected["input"], layout, context)
    shared = parallelize(case.layer(), mesh)
    own = shard_tokens(tokens, layout, context).clone()
    found = run(shared, own, lambda x: gather_tokens(x, layout, context))
    # FSDP2 waits for a gradient on every rank that has one on any.
    there = {name for name, grad in gradients(shared).items() if grad is not None}
    sum_gradients(shared, mesh)
    wanted = {name for name, grad in expected.items() if grad is not None} - found.keys()
    errors = {"gradients that are there": float(there != wanted)}
    if shared.chooses:
        # Else nothing would be said of bands by sample.
        rows = {tuple(row) for row in shared.allocation_used.tolist()}
        errors["samples of the same bands"] = float(len(rows) == 1)
    return errors | errors_of(found | gradients(shared), expected)


def sample_errors(case: Case, mesh: Any) -> dict[str, float]:
    """Whether the tokens of statistics are those of the whole video, to the last bit."""
    grid, config, context = case.grid, case.config, ContextParallel.of(mesh)
    tokens = torch.randn(2, grid.num_tokens, 3, 4, generator=torch.Generator().manual_seed(1))
    own = shard_tokens(tokens, tile_layout(grid, config.tile), context)
    expected = read_sample(tokens, grid, config, "tile").flatten(1, 2)
    (found,) = gather_sample((own,), grid, config, context)
    return {"sample": float(not torch.equal(found, expected))}


def gradients(model: nn.Module) -> Found:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def errors_of(found: Found, expected: Found) -> dict[str, float]:
    assert found.keys() == expected.keys()
    return {name: error(found[name], expected[name]) for name in found}


def by_first_rank(compute: Callable[[], Found]) -> Found:
    """What one process computes, on every rank: the first one does it for all."""
    told = [compute() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(told, src=0)
    assert told[0] is not None
    return told[0]


def error(found: Tensor | None, expected: Tensor | None) -> float:
    """Largest difference, relative to the largest number where that is above 1."""
    if found is None or expected is None:
        return 0.0 if found is expected else float("inf")
    if not found.numel():
        return 0.0 if found.shape == expected.shape else float("inf")
    if not found.is_floating_point():
        return float((found != expected).sum())
    worst = (found - expected).abs().max() / expected.abs().max().clamp_min(1)
    return float(worst.detach())


MODELS = {
    "default": {},
    "text": {"cross_attention_dim": 10},
    "paper": {"frequency": PAPER, "absolute_positions": True},
    "sample": {"frequency": SOFT, "prediction_type": "sample", "absolute_positions": "space"},
    "dense": {"frequency": FreqFormerConfig.dense()},
    "checkpointing": {"frequency": SOFT},
    "fewer tiles than ranks": {"video": (1, 4, 8), "cross_attention_dim": 10},
}


def model_errors(name: str, mesh: Any) -> dict[str, float]:
    settings = dict(MODELS[name])
    video = settings.pop("video", (5, 8, 14))

    def make() -> Any:
        torch.manual_seed(0)
        model = FreqFormerTransformer3DModel(
            patch_size=(1, 2, 2), num_layers=2, num_attention_heads=4, attention_head_dim=8,
            **settings,
        ).double()  # fmt: skip
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        for block in model.transformer_blocks:
            if block.attn2 is not None:
                # diffusers' own norm computes in float32 whatever it is given.
                for norm in ("norm_q", "norm_k"):
                    setattr(block.attn2, norm, nn.RMSNorm(8).double())
        if name == "checkpointing":
            model.enable_gradient_checkpointing()
        return model.train()

    draw = torch.Generator().manual_seed(1)
    clip = torch.randn(2, 3, *video, generator=draw, dtype=torch.float64)
    weight = torch.randn(clip.shape, generator=draw, dtype=torch.float64)
    text = {}
    if settings.get("cross_attention_dim"):
        text = {
            "encoder_hidden_states": torch.randn(2, 4, 10, generator=draw, dtype=torch.float64),
            "encoder_attention_mask": torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]),
        }

    def run(model: Any) -> Found:
        out = model(clip, torch.tensor([100.0, 900.0]), **text, return_dict=False)[0]
        (out * weight).sum().backward()
        return {"output": out.detach()}

    def alone() -> Found:
        model = make()
        return run(model) | gradients(model)

    expected, shared = by_first_rank(alone), parallelize(make(), mesh)
    found = run(shared)
    sum_gradients(shared, mesh)
    return errors_of(found | gradients(shared), expected)


if __name__ == "__main__":
    folder, rank, ranks = join()
    mesh = make_mesh(cp=ranks, device_type="cpu")
    exchange.SPLIT_TOKENS = 4  # longer videos come back in two messages, shorter ones in one
    errors = {f"layer: {name}": layer_errors(case, mesh) for name, case in LAYERS.items()}
    errors |= {f"sample: {name}": sample_errors(case, mesh) for name, case in LAYERS.items()}
    errors |= {f"model: {name}": model_errors(name, mesh) for name in MODELS}
    (folder / f"errors-{rank}.json").write_text(json.dumps(errors), encoding="utf-8")
