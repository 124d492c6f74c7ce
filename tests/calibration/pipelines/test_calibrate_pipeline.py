"""`calibrate_pipeline` on whole tiny pipelines: what is measured, what is chosen, going on after an
end, and what is refused."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from diffusers.hooks.first_block_cache import FirstBlockCacheConfig
from tests.integrations.test_minimax_h3 import TEXT, TEXT_TAG, make_model
from tests.support.tiny_pipelines import generate, tiny_wan_pipeline

from freqformer import FreqFormerConfig, FreqFormerTransformer3DModel
from freqformer.calibration import CalibrationSettings, PipelineChoice, calibrate_pipeline
from freqformer.calibration.pipelines.plugged import PluggedSubject, output_projection
from freqformer.config import Band
from freqformer.grid import tile_layout
from freqformer.integrations.diffusers import enable_frequency_attention
from freqformer.models.pipeline import FreqFormerPipeline
from freqformer.routing import RoutingTable

CALL = {
    "height": 128,
    "width": 160,
    "num_frames": 17,
    "guidance_scale": 3.0,
    "max_sequence_length": 16,
}
SETTINGS = CalibrationSettings(steps=3, probes=2, densities=(0.2, 0.6), trials=0)
PROMPTS = ["a cat", "the storm"]


def calibrated(pipe: Any, **changed: Any) -> PipelineChoice:
    options = {"density": 0.5, "call": CALL, "settings": SETTINGS, "progress": False} | changed
    return calibrate_pipeline(pipe, options.pop("prompts", PROMPTS), **options)


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_wan_pipeline()


@pytest.fixture(scope="module")
def choice(pipe: Any) -> PipelineChoice:
    return calibrated(pipe)


def test_the_pipeline_comes_back_as_it_was(pipe: Any) -> None:
    own = [block.attn1.processor for block in pipe.transformer.blocks]
    before = generate(pipe, num_inference_steps=2)
    calibrated(pipe, prompts=PROMPTS[:1])
    assert [block.attn1.processor for block in pipe.transformer.blocks] == own
    assert not pipe.transformer._forward_pre_hooks
    assert torch.equal(generate(pipe, num_inference_steps=2), before)


def test_tables_deliver_their_density(pipe: Any, choice: PipelineChoice) -> None:
    assert 0.3 < choice.density <= 0.5
    with enable_frequency_attention(pipe, choice.tables) as handle:
        generate(pipe, num_inference_steps=3)
        assert handle.density == pytest.approx(choice.density)
    with enable_frequency_attention(
        pipe.transformer, choice.tables, scheduler=pipe.scheduler
    ) as handle:
        generate(pipe, num_inference_steps=3)
        assert handle.density == pytest.approx(choice.density)


def test_more_density_is_expected_nearer_and_is(pipe: Any, choice: PipelineChoice) -> None:
    dense = generate(pipe, num_inference_steps=3)
    expected = []
    found = []
    for density in (0.1, 0.4, 0.8):
        other = choice.calibration.choose(density)
        assert other.density <= density
        expected.append(other.expected_error)
        with enable_frequency_attention(pipe, other.tables):
            found.append(float((generate(pipe, num_inference_steps=3) - dense).norm()))
    assert expected == sorted(expected, reverse=True)
    assert found == sorted(found, reverse=True)
    tolerance = 1.01 * expected[1]
    cheap = choice.calibration.choose_tolerance(tolerance)
    assert cheap.expected_error <= tolerance
    assert cheap.density <= choice.calibration.choose(0.4).density


def test_what_is_measured_is_what_a_banded_head_adds(pipe: Any, choice: PipelineChoice) -> None:
    """In the first layer, whose inputs bands leave as they are."""
    calibration = choice.calibration.calibration
    subject = PluggedSubject(pipe.transformer)
    energies = subject.energies(SETTINGS.candidates)
    layer = pipe.transformer.blocks[0].attn1
    outputs: list[torch.Tensor] = []
    hook = layer.register_forward_hook(lambda _layer, _given, out: outputs.append(out))
    given = {
        "hidden_states": torch.randn(2, 16, 5, 16, 20, generator=torch.Generator().manual_seed(0)),
        "timestep": torch.tensor([700.0, 700.0]),
        "encoder_hidden_states": torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(1)),
    }
    with torch.no_grad(), subject.measuring(energies):
        pipe.transformer(**given)
    place, count = 1, calibration.candidates.mid_tiles[0]
    bands = torch.full((1, 3, 2), Band.DENSE.value)
    bands[0, 0, 1] = Band.MID.value
    table = RoutingTable(bands, torch.full_like(bands, count), calibration.candidates.config)
    with torch.no_grad(), enable_frequency_attention(pipe, table):
        pipe.transformer(**given)
    hook.remove()
    assert energies.grid is not None
    moved = (outputs[1] - outputs[0]).double()
    layout = tile_layout(energies.grid, calibration.candidates.config.tile)
    coarse = 0.0
    for tile in moved[:, layout.raster_to_tile].split(layout.counts.tolist(), 1):
        coarse += tile.shape[1] * float(tile.mean(1).square().sum())
    wanted = [float(moved.square().sum()), coarse]
    assert energies.by_level[0.7][0, 1, place].tolist() == pytest.approx(wanted, rel=1e-3)
    assert all(float(x) > 0 for x in energies.by_level[0.7][..., place].flatten())


class Stop(Exception):
    pass


def stopping(pipe: Any, after: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Its calls from now on are counted; the one after so many fails in its second step."""
    seen: list[int] = []
    own = type(pipe).__call__

    @functools.wraps(own)
    def counted(self: Any, *given: Any, **named: Any) -> Any:
        seen.append(1)
        if len(seen) > after:
            named["callback_on_step_end"] = fail
        return own(self, *given, **named)

    def fail(*_: Any) -> dict:
        raise Stop

    monkeypatch.setattr(type(pipe), "__call__", counted)
    return seen


@pytest.mark.parametrize("after", [1, 3])
def test_it_goes_on_where_it_ended(
    pipe: Any,
    choice: PipelineChoice,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    with monkeypatch.context() as patched:
        stopping(pipe, after, patched)
        with pytest.raises(Stop):
            calibrated(pipe, state=tmp_path)
    seen = stopping(pipe, 100, monkeypatch)
    again = calibrated(pipe, state=tmp_path)
    assert len(seen) == len(PROMPTS) * (1 + 2) - after
    for part, table in choice.tables.items():
        assert torch.equal(again.tables[part].bands, table.bands)
        assert torch.equal(again.tables[part].mid_tiles, table.mid_tiles)
    assert calibrated(pipe, state=tmp_path, density=0.3).density <= 0.3
    assert len(seen) == len(PROMPTS) * (1 + 2) - after
    with pytest.raises(ValueError, match="made with another prompts"):
        calibrated(pipe, state=tmp_path, prompts=["a lighthouse", "the storm"])
    with pytest.raises(ValueError, match="made with another settings"):
        calibrated(pipe, state=tmp_path, settings=replace(SETTINGS, probes=1))


def test_two_experts_have_a_table_each() -> None:
    pipe = tiny_wan_pipeline(experts=2)
    choice = calibrated(pipe, prompts=PROMPTS[:1])
    assert list(choice.tables) == ["transformer", "transformer_2"]
    parts = {step.part: step.level for step in choice.calibration.steps}
    assert parts["transformer"] > 0.875 > parts["transformer_2"]
    with enable_frequency_attention(pipe, choice.tables) as handle:
        generate(pipe, num_inference_steps=3)
        assert handle.density == pytest.approx(choice.density)
    swapped = dict(zip(choice.tables, reversed(choice.tables.values()), strict=True))
    with pytest.raises(ValueError, match="table was made from another model"):
        enable_frequency_attention(pipe, swapped)
    with pytest.raises(ValueError, match="one table for each"):
        enable_frequency_attention(pipe, {"transformer": choice.tables["transformer"]})


def test_offload_changes_nothing(choice: PipelineChoice) -> None:
    pipe = tiny_wan_pipeline()
    cpu_offload(pipe.transformer, execution_device=torch.device("cpu"))
    found = calibrated(pipe, settings=replace(SETTINGS, trials=2))
    expected = found.calibration.choose(0.5).tables["transformer"]
    assert torch.equal(expected.bands, choice.tables["transformer"].bands)
    assert len(found.tried) == 2


def test_first_steps_that_stay_dense_are_out_of_the_density(pipe: Any) -> None:
    found = calibrated(
        pipe, prompts=PROMPTS[:1], settings=replace(SETTINGS, start_percent=0.3, probes=1)
    )
    levels = [step.level for step in found.calibration.steps]
    assert len(levels) == 2
    bands = found.tables["transformer"].bands
    assert (bands[-1] == Band.DENSE).all()
    assert (bands[int(levels[0] * len(bands))] != Band.DENSE).any()
    assert found.density <= 0.5


def test_a_modular_pipeline() -> None:
    """MiniMax-H3: text and sound in the sequence are exact, prompts are embeddings."""
    from diffusers.modular_pipelines.minimax_h3.modular_blocks_minimax_h3 import (
        MiniMaxH3CoreDenoiseStep,
    )
    from diffusers.schedulers.scheduling_minimax_h3 import MiniMaxH3Scheduler

    torch.manual_seed(0)
    pipe = MiniMaxH3CoreDenoiseStep().init_pipeline()
    pipe.update_components(
        transformer=make_model(in_channels=24, audio_in_channels=32),
        scheduler=MiniMaxH3Scheduler(),
        audio_scheduler=MiniMaxH3Scheduler(shift=3.0),
    )
    pipe.set_progress_bar_config(disable=True)
    prompt = {
        "prompt_embeds": torch.randn(1, TEXT, 16, generator=torch.Generator().manual_seed(1)),
        "text_token_tags": torch.full((TEXT,), TEXT_TAG),
    }
    found = calibrated(
        pipe,
        prompts=[prompt],
        density=0.85,
        call={"height": 128, "width": 160, "num_frames": 124},
        settings=CalibrationSettings(steps=4, probes=1, densities=(0.75, 0.9), trials=2),
    )
    assert found.chosen in found.tried
    assert 0.7 < found.density <= 0.85
    assert found.calibration.calibration.grid.shape == (37, 4, 5)


def test_a_pipeline_of_this_library() -> None:
    torch.manual_seed(0)
    model = FreqFormerTransformer3DModel(
        patch_size=(1, 2, 2),
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=12,
        frequency=FreqFormerConfig.dense(),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
        FlowMatchEulerDiscreteScheduler,
    )

    pipe = FreqFormerPipeline(transformer=model, scheduler=FlowMatchEulerDiscreteScheduler())
    pipe.set_progress_bar_config(disable=True)
    call = {"num_frames": 8, "height": 32, "width": 32}
    found = calibrated(pipe, prompts=[{}], call=call, settings=replace(SETTINGS, trials=3))
    assert found.density <= 0.5
    assert len(found.tried) > 1
    assert model.attentions[0].table_bands is None
    model.set_routing_table(found.tables["transformer"])
    with pytest.raises(ValueError, match="has a routing table in layer 0"):
        calibrated(pipe, prompts=[{}], call=call)


def test_what_hides_layers_is_refused() -> None:
    pipe = tiny_wan_pipeline()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ValueError, match=r"has a cache.*disable_cache"):
        calibrated(pipe)
    pipe.transformer.disable_cache()
    pipe.transformer._parallel_config = object()
    with pytest.raises(ValueError, match="has a parallel configuration"):
        calibrated(pipe)


def test_a_single_stream_is_projected_by_its_block() -> None:
    class Layer:
        to_out = None

    block = torch.nn.Module()
    block.proj_out = torch.nn.Linear(10, 3)
    model = torch.nn.Module()
    model.blocks = torch.nn.ModuleList([block])
    project = output_projection(model, "blocks.0.attn", Layer())
    x = torch.randn(5, 4)
    wanted = x @ block.proj_out.weight[:, :4].T + block.proj_out.bias
    torch.testing.assert_close(project(x), wanted)


def test_what_does_not_fit_is_refused(pipe: Any) -> None:
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"prompts": "a cat"}, "prompts is 'a cat'; a list"),
        ({"prompts": []}, "prompts is"),
        ({"call": {"frames": 17}}, "call holds 'frames'"),
        ({"call": {"num_inference_steps": 17}}, "call holds 'num_inference_steps'"),
        ({"density": 0}, "density is 0"),
        ({"tolerance": 0.1}, "density is 0.5 and tolerance 0.1"),
        ({"density": None, "tolerance": -1}, "tolerance is -1"),
    )
    for wrong, message in cases:
        with pytest.raises(ValueError, match=message):
            calibrated(pipe, **wrong)
    with (
        enable_frequency_attention(pipe, density=0.5, min_tokens=1),
        pytest.raises(ValueError, match="pipe has frequency attention"),
    ):
        calibrated(pipe)
