"""Frequency attention in a small random MiniMax-H3 model: exact where it should be, and taken back
without a trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_minimax_h3 import MiniMaxH3Transformer3DModel
from diffusers.modular_pipelines.minimax_h3.modular_blocks_minimax_h3 import (
    MiniMaxH3CoreDenoiseStep,
)
from diffusers.schedulers.scheduling_minimax_h3 import MiniMaxH3Scheduler
from tests.support.enabled_models import EVERY, HIGH, LOW, MID, SIZE, Call, every_check, uniform

from freqformer.grid import Grid
from freqformer.integrations.diffusers import enable_frequency_attention
from freqformer.integrations.diffusers.calls import VideoTokens
from freqformer.integrations.diffusers.packed import last_video

TEXT, SOUND = 7, 5
VIDEO_TAG, TEXT_TAG, AUDIO_TAG = 0, 1, 2


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    return make_model()


def make_model(in_channels: int = 4, audio_in_channels: int = 4) -> Any:
    model = MiniMaxH3Transformer3DModel(
        num_attention_heads=2,
        attention_head_dim=32,
        hidden_size=24,
        num_layers=3,
        num_refiner_layers=1,
        ffn_dim=32,
        in_channels=in_channels,
        audio_in_channels=audio_in_channels,
        text_dim=16,
        freq_dim=32,
        time_embed_hidden_dim=32,
        time_embed_dim=16,
        rope_freq_dim=4,
    )
    return model.eval()


def packed(size: tuple[int, int, int], keyframes: int) -> dict[str, torch.Tensor]:
    """The places of [text | keyframes | audio | video], as the pipeline of diffusers packs them."""
    frames, height, width = size
    rows = torch.linspace(-1.0, 1.0, height, dtype=torch.float64)
    columns = torch.linspace(-1.5, 1.5, width, dtype=torch.float64)
    picture = torch.cartesian_prod(rows, columns)
    area = len(picture)
    text = torch.zeros(TEXT, 3, dtype=torch.float64)
    text[:, 0] = torch.arange(TEXT)
    sound = torch.zeros(2 * SOUND, 3, dtype=torch.float64)
    sound[:, 0] = TEXT + 0.4 * torch.arange(SOUND).repeat(2)
    sound[:, 2] = columns[[0, -1]].repeat_interleave(SOUND)
    still = [torch.cat([torch.full((area, 1), TEXT - 0.5), picture], 1)] * keyframes
    moving = [torch.cat([torch.full((area, 1), TEXT + 1.7 * i), picture], 1) for i in range(frames)]
    places = [text, *still, sound, *moving]
    tags = [TEXT_TAG, *[VIDEO_TAG] * keyframes, AUDIO_TAG, *[VIDEO_TAG] * frames]
    by_token = torch.cat(
        [torch.full((len(part),), tag) for part, tag in zip(places, tags, strict=True)]
    )
    return {
        "position_ids": torch.cat(places),
        "token_tags": by_token,
        "video_indices": (by_token == VIDEO_TAG).nonzero()[:, 0],
        "audio_indices": (by_token == AUDIO_TAG).nonzero()[:, 0],
        "text_indices": (by_token == TEXT_TAG).nonzero()[:, 0],
    }


def run(model: Any, timestep: float, size: tuple[int, int, int], keyframes: int = 1) -> Any:
    """One sample, whose noise is given as other models count it; audio has half of it, keyframes
    none."""
    draw = torch.Generator().manual_seed(1)
    layout = packed(size, keyframes)
    distinct = torch.tensor([1 - timestep / 1000, 1 - timestep / 2000, 1.0])
    which = torch.zeros(len(layout["token_tags"]), dtype=torch.long)
    which[layout["audio_indices"]] = 1
    which[layout["video_indices"][: keyframes * size[1] * size[2]]] = 2
    return model(
        hidden_states=torch.randn(1, len(layout["video_indices"]), 16, generator=draw),
        audio_hidden_states=torch.randn(1, 2 * SOUND, 4, generator=draw),
        encoder_hidden_states=torch.randn(1, TEXT, 16, generator=draw),
        timestep=distinct,
        timestep_indices=which,
        **layout,
    )


def call(
    model: Any, timestep: Sequence[float] = (500.0,), size: tuple[int, int, int] = SIZE
) -> torch.Tensor:
    """The samples of a batch share one layout and timestep, so that others are other calls."""
    return torch.cat([run(model, one, size).sample for one in timestep])


@every_check
def test_as_every_family(model: Any, check: Call) -> None:
    check(model, call)


@pytest.mark.parametrize("keyframes", [0, 1, 2])
def test_all_but_the_video_is_exact(model: Any, keyframes: int) -> None:
    before = run(model, 500.0, SIZE, keyframes)
    with enable_frequency_attention(model, uniform(model, [MID, MID], EVERY)):
        after = run(model, 500.0, SIZE, keyframes)
    torch.testing.assert_close(after.sample, before.sample, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after.audio_sample, before.audio_sample, rtol=1e-4, atol=1e-5)
    with enable_frequency_attention(model, uniform(model, [LOW, HIGH])):
        run(model, 500.0, SIZE, keyframes)
        seen = model.transformer_blocks[0].attn.processor.current.banded
    assert seen == (Grid(*SIZE), TEXT + 2 * SOUND + keyframes * SIZE[1] * SIZE[2])


def test_the_refiner_of_text_is_left_alone(model: Any) -> None:
    own = [block.attn.processor for block in model.token_refiner.refiner_blocks]
    with enable_frequency_attention(model, uniform(model, [LOW, HIGH])) as handle:
        assert handle.layer_names == [f"transformer_blocks.{place}.attn" for place in range(3)]
        assert [block.attn.processor for block in model.token_refiner.refiner_blocks] == own


def test_percentages_are_of_its_schedule_where_1_is_clean(model: Any) -> None:
    scheduler = MiniMaxH3Scheduler()
    scheduler.set_timesteps(11)
    assert len(scheduler.timesteps) == 10
    seen = []
    dials: dict[str, Any] = {"density": 0.7, "min_tokens": 1, "scheduler": scheduler}
    with enable_frequency_attention(model, **dials, start_percent=0.3, end_percent=0.9) as handle:
        processor = model.transformer_blocks[0].attn.processor
        for step in scheduler.timesteps.tolist():
            processor.current.banded = None
            run(model, 1000 * (1 - step), SIZE)
            seen.append(processor.current.banded is not None)
        assert seen == [False] * 3 + [True] * 6 + [False]
        run(model, 1000 * (1 - float(scheduler.timesteps[5])), SIZE)
        assert handle.density == pytest.approx(0.7, rel=0.05)


def test_a_sequence_that_ends_with_no_grid_is_refused() -> None:
    places = packed(SIZE, 1)["position_ids"]
    swapped = torch.arange(len(places))
    swapped[-2:] = swapped[-2:].flip(0)
    with pytest.raises(ValueError, match="no raster of rows and columns"):
        last_video(places[swapped])
    assert last_video(places).grid == Grid(*SIZE)
    assert last_video(places).before == TEXT + 2 * SOUND + SIZE[1] * SIZE[2]


@pytest.fixture(scope="module")
def pipe() -> Any:
    """The modular pipeline from noise to latents, of 5 s: 740 tokens of video, 414 of sound."""
    torch.manual_seed(0)
    made = MiniMaxH3CoreDenoiseStep().init_pipeline()
    made.update_components(
        transformer=make_model(in_channels=24, audio_in_channels=32),
        scheduler=MiniMaxH3Scheduler(),
        audio_scheduler=MiniMaxH3Scheduler(shift=3.0),
    )
    made.set_progress_bar_config(disable=True)
    return made


def generate(pipe: Any) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    return pipe(
        prompt_embeds=torch.randn(1, TEXT, 16, generator=draw),
        text_token_tags=torch.full((TEXT,), TEXT_TAG),
        height=128,
        width=160,
        num_frames=124,
        num_inference_steps=6,
        generator=torch.Generator().manual_seed(0),
        output="latents",
    )


def test_its_modular_pipeline_is_enabled_by_one_call(pipe: Any) -> None:
    before = generate(pipe)
    banded = []
    with enable_frequency_attention(pipe, density=0.8, start_percent=0.3, min_tokens=1) as handle:
        assert handle.layer_names[0] == "transformer.transformer_blocks.0.attn"
        processor = pipe.transformer.transformer_blocks[0].attn.processor
        own = processor.banded
        processor.banded = lambda *given: banded.append(given[1].video) or own(*given)
        assert not torch.allclose(generate(pipe), before, atol=1e-3)
        assert len(banded) == 3  # of 5 steps, for 6 points of the schedule
        assert banded[0] == VideoTokens(Grid(37, 4, 5), before=TEXT + 2 * 207)
        assert handle.density == pytest.approx(0.8, rel=0.02)
    assert torch.equal(generate(pipe), before)
    with enable_frequency_attention(pipe, density=1, min_tokens=1):
        assert torch.equal(generate(pipe), before)


def test_a_modular_pipeline_without_components_is_told_to_load_them() -> None:
    empty = MiniMaxH3CoreDenoiseStep().init_pipeline()
    with pytest.raises(ValueError, match=r"with no model; .* call pipe\.load_components\(\) first"):
        enable_frequency_attention(empty)
