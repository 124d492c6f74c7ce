"""Converted layers of diffusers: the dense model at first, its window or tiles without gates, and a
model that is taken back without a trace."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.support.tiny_conversions import FAMILIES, WINDOWS, velocity

from freqformer.config import Band
from freqformer.grid import Grid
from freqformer.integrations.diffusers import (
    disable_frequency_attention,
    enable_frequency_attention,
)
from freqformer.integrations.diffusers.building import make_session
from freqformer.integrations.diffusers.converted.adapter import Adapter, AdapterSettings
from freqformer.integrations.diffusers.converted.learned import LearnedLayer, LearnedLayers
from freqformer.integrations.diffusers.converted.windows import (
    WindowBands,
    WindowSettings,
    window_config,
    window_density,
)
from freqformer.integrations.diffusers.families import family_of
from freqformer.integrations.diffusers.layer_bands import PresetBands
from freqformer.integrations.diffusers.processor import CurrentCall, FrequencyProcessor, VideoTokens
from freqformer.training_free.preset import mid_density

TILES = WindowSettings(0.6, WINDOWS.tile, WINDOWS.compression, "tiles")
every_family = pytest.mark.parametrize("family", FAMILIES)
every_change = pytest.mark.parametrize("change", ["lora", "full"])
every_pattern = pytest.mark.parametrize("windows", [WINDOWS, TILES], ids=["window", "tiles"])


def layers_of(model: Any) -> dict[str, Any]:
    return dict(family_of(model).layers(model))


def fresh(model: Any, windows: WindowSettings = WINDOWS, change: Any = "lora") -> Adapter:
    """Of a model that has learned nothing yet."""
    torch.manual_seed(1)
    settings = AdapterSettings(windows, change, 4)
    learned = LearnedLayers(layers_of(model), change, settings.rank)
    return Adapter.of(type(model).__name__, layers_of(model), learned, settings)


def moved(adapter: Adapter) -> Adapter:
    """With all that can be learned somewhere else."""
    draw = torch.Generator().manual_seed(2)
    tensors = {
        name: x + 0.2 * torch.randn(x.shape, generator=draw) for name, x in adapter.tensors.items()
    }
    return Adapter(adapter.settings, adapter.transformer, adapter.layers, tensors, adapter.origin)


@every_family
@every_change
@every_pattern
@torch.no_grad()
def test_at_density_1_it_is_the_dense_model_at_first(
    family: str, change: str, windows: WindowSettings
) -> None:
    model, given = FAMILIES[family]()
    every = replace(windows, density=1.0)
    before = velocity(model, given)
    with enable_frequency_attention(model, adapter=fresh(model, every, change)) as handle:
        after = velocity(model, given)
        assert handle.density == pytest.approx(1.0, abs=0.2)
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    assert torch.equal(velocity(model, given), before)


@every_family
@every_pattern
@torch.no_grad()
def test_at_first_it_is_the_pattern_alone(family: str, windows: WindowSettings) -> None:
    model, given = FAMILIES[family]()
    bands = {name: WindowBands(windows, layer.heads) for name, layer in layers_of(model).items()}
    session = make_session(model, bands)
    session.start(model)
    alone = velocity(model, given)
    session.stop()
    with enable_frequency_attention(model, adapter=fresh(model, windows)):
        torch.testing.assert_close(velocity(model, given), alone, rtol=1e-4, atol=1e-5)
    with enable_frequency_attention(model, adapter=moved(fresh(model, windows))):
        assert not torch.allclose(velocity(model, given), alone, atol=1e-3)


@torch.no_grad()
def test_at_first_tiles_are_the_preset() -> None:
    model, _ = FAMILIES["wan"]()
    given = {
        "hidden_states": torch.randn(1, 4, 4, 32, 32),
        "encoder_hidden_states": torch.randn(1, 7, 16),
    }
    windows = WindowSettings(0.5, pattern="tiles")
    grid = Grid(4, 16, 16)
    density = mid_density(grid, window_config(grid, windows), 0)
    layers = layers_of(model)
    bands = {
        name: PresetBands(density, place, len(layers), layer.heads)
        for place, (name, layer) in enumerate(layers.items())
    }
    session = make_session(model, bands)
    session.start(model)
    preset = velocity(model, given)
    session.stop()
    assert not torch.allclose(velocity(model, given), preset, atol=1e-4)
    with enable_frequency_attention(model, adapter=fresh(model, windows)) as handle:
        torch.testing.assert_close(velocity(model, given), preset, rtol=1e-4, atol=1e-5)
        assert handle.density == pytest.approx(window_density(grid, windows))


@every_family
@torch.no_grad()
def test_the_model_is_taken_back_without_a_trace(family: str) -> None:
    model, given = FAMILIES[family]()
    before = velocity(model, given)
    state = {name: x.clone() for name, x in model.state_dict().items()}
    enable_frequency_attention(model, adapter=moved(fresh(model)))
    assert not torch.allclose(velocity(model, given), before, atol=1e-3)
    assert model.state_dict().keys() == state.keys()
    copied = copy.deepcopy(model)
    assert torch.equal(velocity(copied, given), velocity(model, given))
    disable_frequency_attention(model)
    assert torch.equal(velocity(model, given), before)
    assert all(torch.equal(x, state[name]) for name, x in model.state_dict().items())
    disable_frequency_attention(copied)
    assert torch.equal(velocity(copied, given), before)


def gradients(
    model: Any, given: dict[str, Any], learned: LearnedLayers, windows: WindowSettings, impl: Any
) -> dict[str, torch.Tensor | None]:
    """Of what was learned, by name; of the mean square of the model's velocity."""
    bands = {name: WindowBands(windows, layer.heads) for name, layer in layers_of(model).items()}
    session = make_session(model, bands, learned=learned, impl=impl)
    session.start(model)
    velocity(model, given).square().mean().backward()
    session.stop()
    return {name: parameter.grad for name, parameter in learned.named_parameters()}


@every_family
@every_change
@every_pattern
def test_all_that_is_learned_gets_a_gradient(
    family: str, change: Any, windows: WindowSettings
) -> None:
    model, given = FAMILIES[family]()
    model.requires_grad_(False)
    adapter = moved(fresh(model, windows, change))
    learned = adapter.for_layers(adapter.transformer, layers_of(model))
    for name, found in gradients(model, given, learned, windows, "auto").items():
        assert found is not None, name
        assert bool(found.any()), name
    assert all(parameter.grad is None for parameter in model.parameters())


@every_pattern
def test_gradients_are_those_of_the_reference_in_float64(windows: WindowSettings) -> None:
    """Of gates, of the router and of LoRA."""
    model, given = FAMILIES["wan"]()
    model.requires_grad_(False)
    adapter = moved(fresh(model, windows))
    learned = adapter.for_layers(adapter.transformer, layers_of(model))
    found = gradients(model, given, learned, windows, "eager")
    exact = copy.deepcopy(learned).double()
    exact.zero_grad()
    inputs = {name: x.double() for name, x in given.items()}
    wanted = gradients(model.double(), inputs, exact, windows, "reference")
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        reference = wanted[name]
        assert gradient is not None
        assert reference is not None
        assert float((gradient - reference).norm() / reference.norm()) < 1e-4, name


@torch.no_grad()
def test_gates_know_the_noise_level_of_every_sample() -> None:
    model, given = FAMILIES["wan"]()
    both = {name: x.expand(2, *x.shape[1:]) for name, x in given.items()}
    with enable_frequency_attention(model, adapter=moved(fresh(model))):
        together = model(**both, timestep=torch.tensor([100.0, 900.0]), return_dict=False)[0]
        for place, timestep in enumerate((100.0, 900.0)):
            alone = velocity(model, given, timestep)
            torch.testing.assert_close(together[place], alone[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_gates_are_what_the_page_says() -> None:
    """(a, b) = x·G + g + ρ(t): a of the window and b of LOW, of every head."""
    torch.manual_seed(0)
    layer = LearnedLayer(3, 2)
    for parameter in layer.parameters():
        parameter.normal_()
    video, noise_level = torch.randn(2, 5, 3), torch.tensor([0.2, 0.9])
    found = layer.branch(video, noise_level)
    windows, lows = layer.gates.weight.split(2)
    own_bias, low_bias = layer.gates.bias.split(2)
    wanted = torch.stack([video @ windows.T + own_bias, video @ lows.T + low_bias], 2)
    assert found.by_token is not None
    torch.testing.assert_close(found.by_token, wanted)
    logits = layer.router(None, noise_level)
    assert found.by_sample is not None
    torch.testing.assert_close(
        found.by_sample, logits[..., [Band.HIGH.value, Band.LOW.value]].transpose(1, 2)
    )


@torch.no_grad()
def test_gates_are_of_the_video_and_not_of_what_lies_around_it() -> None:
    """Text or keyframes may come before a video, and behind it."""
    grid, given = Grid(1, 2, 3), []
    learned: Any = SimpleNamespace(branch=lambda video, noise_level: given.append(video))
    processor = FrequencyProcessor(
        CurrentCall(), WindowBands(WINDOWS, 2), None, impl="eager", learned=learned
    )
    share: Any = SimpleNamespace(
        video=VideoTokens(grid, before=4, behind=2), noise_level=torch.tensor([0.5])
    )
    tokens = torch.arange(12.0).view(1, 12, 1)
    processor._low_branch(share, tokens)
    assert given[0].flatten().tolist() == [4, 5, 6, 7, 8, 9]


@torch.no_grad()
def test_dense_layers_and_dense_steps_have_nothing_of_it() -> None:
    model, given = FAMILIES["wan"]()
    before = velocity(model, given)
    adapter = moved(fresh(model))
    with enable_frequency_attention(model, adapter=adapter, dense_blocks=(2, 1)):
        assert torch.equal(velocity(model, given), before)
    with enable_frequency_attention(model, adapter=adapter, min_tokens=97):
        assert torch.equal(velocity(model, given), before)


@pytest.mark.slow
def test_compiled_blocks_of_a_converted_model_are_one_graph() -> None:
    command = [sys.executable, "-m", "tests.support.compiled_adapters"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["graphs"] == [1, 1]
    assert told["most"] < 1e-5


def test_an_adapter_is_refused_where_it_does_not_belong() -> None:
    model, _ = FAMILIES["wan"]()
    other, _ = FAMILIES["ltx"]()
    adapter = fresh(model)
    with pytest.raises(ValueError, match=r"made for a WanTransformer3DModel of 3 attention layers"):
        enable_frequency_attention(other, adapter=adapter)
    torch.manual_seed(5)
    strange = type(model).from_config(model.config)
    with pytest.raises(ValueError, match="adapter was made from another model: its weights agree"):
        enable_frequency_attention(strange, adapter=adapter)
    with pytest.raises(ValueError, match=r"density is 0\.2 beside an adapter"):
        enable_frequency_attention(model, adapter=adapter, density=0.2)
    enable_frequency_attention(model, adapter=adapter)
    with pytest.raises(ValueError, match="has frequency attention already"):
        enable_frequency_attention(model, adapter=adapter)
