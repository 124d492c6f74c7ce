"""A small attention layer and its inputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from freqformer import FreqFormerConfig, Grid
from freqformer.attention import make_attention
from freqformer.grid import tile_layout
from freqformer.routing import RoutingTable

GRID, HEADS, DIM = Grid(5, 4, 6), 3, 24
CONFIG = FreqFormerConfig(
    tile=(2, 2, 3), compression=16, window=(1, 1, 1), mid_tiles=2, summary_tokens=6
)
TIMESTEP = torch.tensor([0.2, 0.9])
DENSE = {"allocation": "dense"}


def record_fields(options: dict[str, Any]) -> dict[str, Any]:
    """Fields of a record, completed by what usually goes with them; a router chooses where nothing
    is said."""
    if options.get("allocation") == "dense":
        return {"routing": "fixed", "low_branch": False} | options
    routing = options.get("routing", "hard")
    if routing in ("soft", "timestep"):
        return options
    prior = "noise_level" if routing == "hard" else "none"
    usual = {"allocation": "thirds", "routing": routing, "low_branch": False, "prior": prior}
    return usual | options


def make_layer(config: FreqFormerConfig = CONFIG, **options: Any) -> Any:
    """A layer whose norms and summaries are not at their neutral start; `options` are fields of its
    record."""
    torch.manual_seed(0)
    layer = make_attention(DIM, HEADS, replace(config, **record_fields(options)))
    with torch.no_grad():
        for parameter in (layer.query_norm, layer.key_norm):
            parameter.add_(torch.rand_like(parameter))
    return layer


def make_input(seed: int = 1) -> torch.Tensor:
    return torch.randn(2, GRID.num_tokens, DIM, generator=torch.Generator().manual_seed(seed))


def weights_of(layer: torch.nn.Module, *without: str) -> dict[str, torch.Tensor]:
    """A layer's weights for one of other bands, but for names that hold one of `without`."""
    left = ("allocation", *without)
    return {
        name: x for name, x in layer.state_dict().items() if not any(part in name for part in left)
    }


def make_rotary(order: str = "raster") -> tuple[torch.Tensor, torch.Tensor]:
    """Tables of one and the same rotation, in either order."""
    angle = (
        torch.rand(GRID.num_tokens, DIM // HEADS // 2, generator=torch.Generator().manual_seed(2))
        * 6
    )
    if order == "tile":
        angle = angle[tile_layout(GRID, CONFIG.tile).raster_to_tile]
    return angle.cos(), angle.sin()


def make_table(bands: torch.Tensor, config: FreqFormerConfig = CONFIG) -> RoutingTable:
    return RoutingTable(bands, torch.full_like(bands, config.mid_tiles or 0), config)
