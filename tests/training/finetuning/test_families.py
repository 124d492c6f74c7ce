"""Every family of pipelines from captioned videos to a video: a cache, a run through frequency
attention, the LoRA in diffusers' own pipeline, a video by it; and all weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL import Image
from tests.support.tiny_finetuning import add_lora, lora_config, make_pipeline_and_cache
from tests.support.tiny_training import changed

from freqformer.integrations.diffusers import enable_frequency_attention
from freqformer.training.loop import train

HEIGHT = 128
WIDTH = 160
DENSITY = 0.7
IMAGE = Image.linear_gradient("L").convert("RGB").resize((WIDTH, HEIGHT))
OPTIONS: dict[str, dict[str, Any]] = {
    "hunyuan": {"max_sequence_length": 32},
    "wan-2.1-i2v": {"image": IMAGE, "guidance_scale": 1.0},
    "wan-2.2-i2v": {"image": IMAGE, "guidance_scale": 1.0},
}
"""Of a pipeline's call."""


def generated(pipe: Any, kind: str) -> torch.Tensor:
    """Latents of a short video."""
    return pipe(
        prompt="a cat",
        height=HEIGHT,
        width=WIDTH,
        num_frames=17,
        num_inference_steps=2,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
        **OPTIONS[kind],
    ).frames


def loaded(folder: Path) -> Any:
    pipe = DiffusionPipeline.from_pretrained(folder / "pipe")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def with_additions(pipe: Any, run: Path) -> Any:
    """The pipeline with W + B A in place of W, by the averaged additions of a run."""
    add_lora(pipe.transformer, run)
    return pipe


@pytest.mark.parametrize("kind", sorted(OPTIONS))
def test_from_videos_to_a_video(kind: str, tmp_path: Path) -> None:
    folder = make_pipeline_and_cache(tmp_path, kind, size=(HEIGHT, WIDTH))
    lora = train(lora_config(folder, folder / "run", density=DENSITY))
    before = generated(loaded(folder), kind)
    pipe = loaded(folder)
    pipe.load_lora_weights(str(lora))
    made = generated(pipe, kind)
    assert bool(made.isfinite().all())
    assert not torch.allclose(made, before, atol=1e-4)
    expected = generated(with_additions(loaded(folder), folder / "run"), kind)
    torch.testing.assert_close(made, expected, rtol=1e-3, atol=1e-4)
    with enable_frequency_attention(
        pipe, density=DENSITY, min_tokens=1, start_percent=0
    ) as attention:
        sparse = generated(pipe, kind)
        assert "of dense attention's FLOPs" in attention.describe()
    assert not torch.allclose(sparse, made, atol=1e-4)


@pytest.mark.parametrize("kind", sorted(OPTIONS))
def test_all_weights(kind: str, tmp_path: Path) -> None:
    folder = make_pipeline_and_cache(tmp_path, kind, size=(HEIGHT, WIDTH))
    config = lora_config(folder, folder / "run", weights="full", density=DENSITY)
    trained = train(changed(config, "optimizer", learning_rate=1e-3))
    pipe = loaded(folder)
    before = generated(pipe, kind)
    pipe.transformer = type(pipe.transformer).from_pretrained(trained)
    made = generated(pipe, kind)
    assert bool(made.isfinite().all())
    assert not torch.allclose(made, before, atol=1e-4)
