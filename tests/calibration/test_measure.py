"""Errors in a model's own forward pass, against the design written out in float64."""

from __future__ import annotations

import pytest
import torch
from tests.calibration.conftest import CANDIDATES
from tests.support.cases import Case, Inputs
from tests.support.oracle import attend_oracle

from freqformer.attention import NORM_EPS
from freqformer.calibration.measure import measured
from freqformer.config import Band
from freqformer.grid import Grid
from freqformer.models.embeddings import rotary_tables
from freqformer.ops.prologue.reference import tile_means
from freqformer.ops.tokens import reorder, rms_norm, rotate
from freqformer.patterns import topk_tiles

GRID = Grid(5, 4, 6)
CANDIDATES_PINNED = CANDIDATES.pinned(GRID)


def layer_inputs(model, video, timestep) -> list[Inputs]:
    """Queries, keys and values of every layer, normalised and rotated, in raster order and
    float64."""
    seen = []
    handles = [
        layer.register_forward_pre_hook(lambda layer, given: seen.append((layer, given[0])))
        for layer in model.attentions
    ]
    with torch.no_grad():
        model(video, timestep)
    for handle in handles:
        handle.remove()
    rotary = rotary_tables(GRID, None, 8, torch.device("cpu"))
    inputs = []
    for layer, hidden in seen:
        query, key, value = (
            to(hidden).detach().double().unflatten(2, (3, 8))
            for to in (layer.to_q, layer.to_k, layer.to_v)
        )
        query, key = (
            rotate(rms_norm(x, norm.detach(), NORM_EPS).transpose(1, 2), rotary).transpose(1, 2)
            for x, norm in ((query, layer.query_norm), (key, layer.key_norm))
        )
        inputs.append(Inputs(query, key, value, value, None, None))
    return inputs


def oracle_output(band: Band, config, inputs: Inputs) -> torch.Tensor:
    """(1, N, 3, 8) with every head in `band`."""
    case = Case(GRID, config, ((band.value,) * 3,), 8)
    lists = None
    if band == Band.MID:
        tiled = (
            reorder(x.transpose(1, 2).flatten(0, 1), case.plan.layout, "raster", "tile")
            for x in (inputs.query, inputs.key)
        )
        lists = topk_tiles(*(tile_means(x, case.plan) for x in tiled), config.mid_tiles)[None]
    return attend_oracle(case, inputs, lists)


def test_energies_are_those_of_the_design(dense_model, clips):
    video, timestep = clips[0][:1], torch.tensor([700.0])
    with measured(dense_model.attentions, CANDIDATES_PINNED) as energies, torch.no_grad():
        dense_model(video, timestep)
    for layer, inputs in enumerate(layer_inputs(dense_model, video, timestep)):
        dense = oracle_output(Band.DENSE, CANDIDATES_PINNED.config, inputs)
        torch.testing.assert_close(
            energies.output[layer], dense.square().sum((0, 1, 3)), rtol=1e-5, atol=0
        )
        for place, (band, config) in enumerate(CANDIDATES_PINNED.operators):
            error = (oracle_output(band, config, inputs) - dense).square().sum((0, 1, 3))
            torch.testing.assert_close(energies.error[layer, :, place], error, rtol=1e-4, atol=0)


def test_sums_grow_with_every_pass_and_leave_the_model_alone(dense_model, clips):
    timestep = torch.tensor([100.0, 800.0])
    with torch.no_grad():
        expected = dense_model(clips[0], timestep).sample
        with measured(dense_model.attentions, CANDIDATES_PINNED) as energies:
            assert torch.equal(dense_model(clips[0], timestep).sample, expected)
            once = energies.error.clone()
            dense_model(clips[0], timestep)
        assert torch.equal(energies.error, 2 * once)
        dense_model(clips[0], timestep)
    assert torch.equal(energies.error, 2 * once)
    assert bool((energies.error > 0).all())


def test_hooks_are_gone_after_an_error(dense_model, clips):
    def hooked() -> int:
        return sum(
            len(module._forward_hooks) + len(module._forward_pre_hooks)
            for module in dense_model.modules()
        )

    def fail() -> None:
        with measured(dense_model.attentions, CANDIDATES_PINNED):
            assert hooked() == 2 * 5
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        fail()
    assert hooked() == 0


def test_half_precision_is_measured_as_it_runs(dense_model, clips):
    timestep = torch.tensor([100.0, 800.0])
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        model = dense_model.to(dtype)
        with measured(model.attentions, CANDIDATES_PINNED) as energies, torch.no_grad():
            model(clips[0].to(dtype), timestep)
        found.append((energies.error / energies.output[..., None]).sqrt())
    torch.testing.assert_close(found[1], found[0], rtol=0.1, atol=0.02)
    assert not torch.equal(*found)
