"""The whole chain by its three commands: captioned videos, a cache, a trained model, an MP4."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tests.support.command_line import refused, run
from tests.support.tiny_cache import make_videos
from tests.support.tiny_encoders import save_encoders

from freqformer import FreqFormerPipeline
from freqformer.media import probe_video

TINY = [
    *("--set", "model.num_layers=1", "--set", "model.num_attention_heads=3"),
    *("--set", "model.attention_head_dim=8", "--set", "run.batch_size=1"),
    *("--set", "run.progress=false", "--set", "run.device=cpu"),
]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the commands were run, without what they began with."""
    folder = tmp_path_factory.mktemp("chain")
    make_videos(folder / "videos")
    save_encoders(folder / "wan")
    sizes = ["--size", "32x48", "--frames", 5, "--fps", 8, "--device", "cpu"]
    encoders = ["--vae", folder / "wan", "--text-encoder", folder / "wan"]
    run("cache", folder / "videos", *encoders, "-o", folder / "cache", *sizes)
    shutil.rmtree(folder / "videos")
    shutil.rmtree(folder / "wan")
    run("train", folder / "cache", "-o", folder / "run", "--steps", 3, *TINY)
    shutil.rmtree(folder / "cache")
    return folder


def test_a_video_comes_of_it(chain: Path, tmp_path: Path) -> None:
    made = tmp_path / "red.mp4"
    told = run(
        *("sample", chain / "run", "-o", made, "--prompt", "a red ball", "--steps", 2),
        *("--device", "cpu"),
    )
    # The size of most clips of the cache.
    assert "wrote 1 video of 5 x 32 x 48" in told
    info = probe_video(made)
    assert (info.num_frames, info.height, info.width, info.fps) == (5, 32, 48, 8)
    assert made.with_suffix(".png").is_file()


def test_the_pipeline_is_whole_without_the_cache(chain: Path) -> None:
    index = json.loads((chain / "run" / "pipeline" / "model_index.json").read_text())
    assert index["vae"] == ["diffusers", "AutoencoderKLWan"]
    assert index["text_encoder"] == ["transformers", "T5EncoderModel"]
    pipeline = FreqFormerPipeline.from_pretrained(chain / "run" / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    size = {"num_frames": 5, "height": 48, "width": 32, "num_inference_steps": 1}
    # What little the model has learned of words shows under strong guidance.
    first, second = (
        pipeline(
            **size,
            prompt=prompt,
            guidance_scale=100.0,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        ).frames
        for prompt in ("a red ball", "blue")
    )
    assert first.shape == (1, 4, 2, 6, 4)
    assert not torch.equal(first, second)


def test_what_a_model_with_text_needs(chain: Path, trained: Path, tmp_path: Path) -> None:
    output = ["-o", tmp_path / "new.mp4", "--device", "cpu"]
    refused("sample", chain / "run", *output, message="--prompt is missing, and the model was")
    refused(
        *("sample", trained, *output, "--prompt", "a ball", "--guidance", 3),
        message="--prompt and --guidance is given, and the model was trained without text",
    )
    refused("export", chain / "run", "-o", tmp_path / "m", message="was trained on the cache")
    refused("train", chain / "cache", "-o", tmp_path / "r", message="does not exist; give a video")
