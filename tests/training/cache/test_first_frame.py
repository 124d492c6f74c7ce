"""Clips whose first frame the model is given, and videos that go on from a picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.support.command_line import run
from tests.support.models import make_model
from tests.support.tiny_encoders import tiny_vae
from tests.support.tiny_training import tiny_config

from freqformer import FreqFormerPipeline
from freqformer.media import to_unit
from freqformer.models.latents import encode
from freqformer.training.cache.clips import CachedClips
from freqformer.training.config import DataConfig
from freqformer.training.loop import train
from freqformer.training.objective import flow_matching_loss
from freqformer.training.samples import TrainingBatch


def test_a_given_frame_has_no_noise_and_no_loss() -> None:
    seen = []

    class Model(torch.nn.Module):
        def forward(self, noisy, timestep, return_dict):
            seen.append(noisy)
            return (torch.zeros_like(noisy),)

    clip, noise = torch.randn(2, 3, 4, 2, 2), torch.randn(2, 3, 4, 2, 2)
    timestep = torch.tensor([0.3, 0.8])
    kept = torch.tensor([False, True])
    loss = flow_matching_loss(Model(), clip, timestep, noise, keeps_first=kept)
    t = timestep.view(-1, 1, 1, 1, 1)
    expected = (1 - t) * clip + t * noise
    expected[1, :, 0] = clip[1, :, 0]
    assert torch.equal(seen[0], expected)
    target = noise - clip
    parts = [target[0].flatten(), target[1, :, 1:].flatten()]
    assert loss == pytest.approx(float(torch.cat(parts).square().mean()))
    none = flow_matching_loss(Model(), clip, timestep, noise, keeps_first=~kept & kept)
    assert none == pytest.approx(float(flow_matching_loss(Model(), clip, timestep, noise)))


def test_a_share_of_the_clips_is_given(made: Path) -> None:
    source = CachedClips(made / "cache", 0, batch_size=1, first_frame=0.5)
    samples = [source.load(index) for index in range(200)]
    moving = [sample.keeps_first for sample in samples if sample.clip.shape[1] > 1]
    assert 0.35 < sum(moving) / len(moving) < 0.65
    # A picture has nothing to go on with.
    assert not any(sample.keeps_first for sample in samples if sample.clip.shape[1] == 1)
    alike = [sample for sample in samples if sample.clip.shape == samples[0].clip.shape][:8]
    batch = TrainingBatch.of(alike, [torch.zeros_like(sample.clip) for sample in alike])
    assert batch.keeps_first is not None
    assert batch.keeps_first.tolist() == [sample.keeps_first for sample in alike]
    without = CachedClips(made / "cache", 0, batch_size=1)
    assert not any(without.load(index).keeps_first for index in range(50))


@pytest.fixture(scope="module")
def run_folder(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first") / "run"
    base = tiny_config(folder)
    train(
        replace(
            base,
            model={**base.model, "patch_size": [1, 2, 2]},
            data=DataConfig(cache=str(made / "cache"), first_frame=1.0),
            run=replace(base.run, batch_size=1),
        )
    )
    return folder


def test_a_video_goes_on_from_a_picture(made: Path, run_folder: Path, tmp_path: Path) -> None:
    pipeline = FreqFormerPipeline.from_pretrained(run_folder / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    image = torch.randint(0, 256, (32, 48, 3), dtype=torch.uint8)
    asked = {"num_inference_steps": 2, "prompt": "a ball", "output_type": "latent", "batch_size": 2}
    latents = pipeline(5, 32, 48, image=image, **asked).frames
    coded = encode(to_unit(image[None])[None], tiny_vae()).mean
    torch.testing.assert_close(latents[:, :, :1], coded.expand(2, -1, -1, -1, -1))
    assert not torch.equal(latents[0, :, 1:], latents[1, :, 1:])
    with pytest.raises(ValueError, match=r"image is torch.uint8 \(48, 32, 3\); a uint8 tensor"):
        pipeline(5, 32, 48, image=image.transpose(0, 1), **asked)
    with pytest.raises(ValueError, match=r"image is str; a uint8 tensor \(32, 48, 3\)"):
        pipeline(5, 32, 48, image="still.png", **asked)
    told = run(
        *("sample", run_folder, "-o", tmp_path / "on.mp4", "--prompt", "a ball", "--steps", 1),
        *("--image", made / "videos" / "still.png", "--device", "cpu"),
    )
    assert "wrote 1 video" in told


def test_the_frames_after_it_see_the_picture() -> None:
    pixels = make_model(in_channels=3)
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
        FlowMatchEulerDiscreteScheduler,
    )

    pipeline = FreqFormerPipeline(pixels.eval(), FlowMatchEulerDiscreteScheduler())
    pipeline.set_progress_bar_config(disable=True)
    first, second = (
        pipeline(
            3,
            4,
            4,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(0),
            image=torch.full((4, 4, 3), value, dtype=torch.uint8),
            output_type="latent",
        ).frames
        for value in (0, 255)
    )
    assert torch.all(first[:, :, 0] == -1)
    assert torch.all(second[:, :, 0] == 1)
    assert not torch.allclose(first[:, :, 1:], second[:, :, 1:])


def test_it_is_of_a_cache() -> None:
    with pytest.raises(ValueError, match=r"first_frame is 0\.5 and cache None"):
        DataConfig(first_frame=0.5)
