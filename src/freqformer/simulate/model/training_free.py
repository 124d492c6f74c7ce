"""What `enable_frequency_attention` does in a trained model, step by step and layer by layer."""

from __future__ import annotations

from freqformer.config import FreqFormerConfig
from freqformer.simulate.model.allocations import Route
from freqformer.simulate.model.scenarios import Scenario
from freqformer.training_free.dials import Dials
from freqformer.training_free.preset import preset_configs


def training_free_schedule(case: Scenario, dials: Dials) -> list[list[Route]]:
    """Heads and config of every step and layer.

    Args:
        case: of a dense model.
        dials: its dials, with a density.

    Raises:
        ValueError: for a density that one tile and the summaries exceed.
    """
    layers, steps = case.model.num_layers, case.model.steps
    own = dense_route(case)
    if case.tokens < dials.min_tokens:
        return [[own] * layers] * steps
    first, last = dials.dense_blocks
    banded = banded_routes(case, dials, max(0, layers - first - last))
    inside = ([own] * first + banded + [own] * last)[:layers]
    # A step is dense when a smaller share of the steps lies before it.
    return [
        inside if dials.start_percent <= step / steps < dials.end_percent else [own] * layers
        for step in range(steps)
    ]


def banded_routes(case: Scenario, dials: Dials, layers: int) -> list[Route]:
    """Heads and config of so many banded layers."""
    assert dials.density is not None
    if layers == 0:
        return []
    chosen = preset_configs(case.grid, case.model.joint_text_tokens, dials.density, layers)
    return [
        dense_route(case) if config is None else ((0, case.model.heads, 0, 0), config)
        for config in chosen
    ]


def dense_route(case: Scenario) -> Route:
    """A layer that the model computes itself."""
    return (0, 0, 0, case.model.heads), FreqFormerConfig.dense()
