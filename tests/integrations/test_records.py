"""Which models hand a compiled graph what each call does: those in which layers or steps differ."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from tests.support.enabled_models import CONFIG, DENSE, HIGH, LOW, MID, layers_of, make_table
from tests.support.tiny_transformers import WAN, wan_inputs

from freqformer.attention.record import CallRecord, unpacked
from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid, choose_tile
from freqformer.integrations.diffusers import enable_frequency_attention
from freqformer.integrations.diffusers.converted.windows import WindowBands, WindowSettings
from freqformer.integrations.diffusers.layer_bands import PresetBands, TableBands
from freqformer.integrations.diffusers.processor import FrequencyProcessor
from freqformer.integrations.diffusers.ulysses import head_parts
from freqformer.ops.fused import workspace_bytes
from freqformer.plan import build_plan
from freqformer.routing import RoutingTable
from freqformer.training_free.preset import preset_configs

SIZE = (5, 6, 9)
GRID = Grid(*SIZE)
LEVELS = tuple(1 - step / 20 for step in range(21))


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    return WanTransformer3DModel(**WAN).eval()


def records_of(model: Any, timesteps: list[float]) -> list[CallRecord | None]:
    """Of every layer's first banded share in a call."""
    seen: list[CallRecord | None] = []

    def look(layer: Any, *_: Any) -> None:
        if isinstance(layer.processor, FrequencyProcessor):
            banded = (share for share in layer.processor.shares if share.bands is not None)
            given = next((share.recorded for share in banded), None)
            seen.append(None if given is None else unpacked(given.record))

    hooks = [layer.register_forward_pre_hook(look) for layer in layers_of(model)]
    with torch.no_grad():
        model(**wan_inputs(timesteps, SIZE))
    for hook in hooks:
        hook.remove()
    return seen


def test_layers_and_steps_that_do_the_same_are_constants(model: Any) -> None:
    layers = len(layers_of(model))
    same = make_table([[[LOW, MID]] * layers, [[DENSE, DENSE]] * layers])
    with enable_frequency_attention(model, same):
        assert records_of(model, [100.0]) == [None] * layers
        assert records_of(model, [900.0, 100.0]) == [None] * layers
        assert records_of(model, [900.0]) == [None] * layers


@pytest.mark.parametrize("what", ["tiles", "bands", "one layer"])
def test_what_differs_is_given(model: Any, what: str) -> None:
    """In a call whose own layers may all do the same."""
    layers = len(layers_of(model))
    bands = torch.full((2, layers, 2), MID)
    tiles = torch.full((2, layers, 2), 2)
    if what == "tiles":
        tiles[1] = 1
    elif what == "bands":
        bands[1] = HIGH
    else:
        bands[1, -1] = HIGH
    with enable_frequency_attention(model, RoutingTable(bands, tiles, CONFIG)):
        quiet = records_of(model, [100.0])
        noisy = records_of(model, [900.0])
    assert quiet == [CallRecord(GRID, CONFIG, 0, (MID,))] * layers
    assert noisy[-1] is not None
    assert noisy[-1] != quiet[-1]
    kept = 1 if what == "tiles" else 2
    assert noisy[-1].config.mid_tiles == kept


def test_a_copy_says_what_the_first_said(model: Any) -> None:
    """Records are data: they mean the same in another model, and once the first is disabled."""
    layers = len(layers_of(model))
    table = make_table([[[LOW, MID]] * layers, [[HIGH, MID]] * layers])
    with enable_frequency_attention(model, table):
        wanted = records_of(model, [100.0])
        copied = copy.deepcopy(model)
    assert records_of(copied, [100.0]) == wanted
    assert None not in wanted


def test_a_falling_density_is_given_and_a_constant_one_is_not(model: Any) -> None:
    dials: dict[str, Any] = {
        "density": 0.7,
        "min_tokens": 1,
        "start_percent": 0,
        "scheduler": SimpleNamespace(timesteps=1000 * torch.tensor(LEVELS[:-1])),
    }
    for schedule, given in {"falling": True, "constant": False}.items():
        dials["density_schedule"] = schedule
        with enable_frequency_attention(model, **dials):
            found = records_of(model, [500.0])
        assert [record is not None for record in found] == [given] * len(layers_of(model))


def test_large_compiled_calls_compute_heads_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Since what they hold in tile order is then less than the queries, at the sizes of Wan 14B."""
    small = torch.empty(1, 2000, 40, 128, dtype=torch.bfloat16, device="meta")
    large = torch.empty(1, 75_600, 40, 128, dtype=torch.bfloat16, device="meta")
    assert head_parts(large) == 1
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert head_parts(small) == 1
    assert head_parts(large[:, :, :3].repeat(1, 9, 1, 1)) == 3
    assert head_parts(large) == 4
    monkeypatch.undo()
    grid = Grid(21, 45, 80)
    thirds = FreqFormerConfig(tile=choose_tile(grid), summary_tokens=256)
    (preset,) = preset_configs(grid, 0, 0.2, 1)
    for config in (thirds, preset):
        assert config is not None
        plans = [build_plan(grid, config, num_heads=heads, head_dim=128) for heads in (40, 10)]
        whole, part = (workspace_bytes(plan, 1, torch.bfloat16) for plan in plans)
        queries = large.numel() * large.element_size()
        assert part < queries < whole / 3


def test_bands_say_all_that_they_do() -> None:
    """At every noise level what a call gets is among the records."""
    rows = torch.tensor([[MID, MID], [LOW, HIGH], [MID, LOW], [DENSE, DENSE]])
    configs = [CONFIG, CONFIG, CONFIG, CONFIG]
    every = (
        TableBands(rows, configs, tiles=9),
        PresetBands(0.7, 1, 3, 2, lambda: LEVELS),
        PresetBands(0.7, 0, 1, 2),
        WindowBands(WindowSettings(density=0.9), 2),
    )
    for bands in every:
        found = set()
        for level in torch.linspace(0, 1, 41):
            (config,) = bands.configs(GRID, level[None], 3)
            if config is not None:
                present = bands.bands(level[None], torch.device("cpu")).present
                found.add(CallRecord(GRID, config, 3, present))
        assert found == bands.records(GRID, 3)
