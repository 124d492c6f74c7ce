"""Held-out loss and videos while a run goes on, which leave the run as it would be without."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.support.tiny_cache import cache_config, make_videos
from tests.support.tiny_encoders import save_encoders
from tests.support.tiny_training import losses, tiny_config

from freqformer import FreqFormerPipeline
from freqformer.media import probe_video, read_clip
from freqformer.training.cache.making import make_cache
from freqformer.training.cache.reading import LatentCache
from freqformer.training.checkpoint import load_checkpoint
from freqformer.training.config import DataConfig, TrainConfig
from freqformer.training.objective import flow_matching_loss
from freqformer.training.seeding import derive_generator
from freqformer.training.validation.held_out import choose_held_out, held_out_losses
from freqformer.training.validation.settings import ValidationConfig

PROMPTS = ("a red ball flies left", "")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cached")
    save_encoders(folder / "encoders")
    make_videos(folder / "videos")
    make_cache(cache_config(folder))
    return folder


def config_of(made: Path, output: Path, **validation) -> TrainConfig:
    base = tiny_config(output)
    return replace(
        base,
        model={**base.model, "patch_size": [1, 2, 2]},
        data=DataConfig(cache=str(made / "cache")),
        run=replace(base.run, batch_size=1, max_steps=5),
        validation=ValidationConfig(
            **{"every_steps": 2, "held_out": 1, "num_inference_steps": 2, **validation}
        ),
    )


def test_losses_and_videos_every_so_many_steps(made: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    shown = losses(config_of(made, output, prompts=PROMPTS))
    steps = sorted(path.name for path in (output / "validation").iterdir())
    # The last step is shown too.
    assert steps == ["step-00000002", "step-00000004", "step-00000005"]
    for step in steps:
        for place in range(len(PROMPTS)):
            path = output / "validation" / step / f"{place}.mp4"
            info = probe_video(path)
            assert (info.num_frames, info.height, info.width, info.fps) == (5, 32, 48, 8)
            assert path.with_suffix(".png").is_file()
    log = EventAccumulator(str(output / "logs"))
    log.Reload()
    logged = log.Scalars("held_out_loss")
    assert [event.step for event in logged] == [2, 4, 5]
    by_level = [log.Scalars(f"held_out_loss/{level:g}")[-1].value for level in (0.1, 0.5, 0.9)]
    assert len(set(by_level)) == 3
    assert [event.step for event in log.Images("videos/1")] == [2, 4, 5]
    # The last ones are of the weights that the pipeline has.
    pipeline = FreqFormerPipeline.from_pretrained(output / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    again = pipeline(
        5,
        32,
        48,
        num_inference_steps=2,
        prompt=PROMPTS[0],
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(0),
        output_type="uint8",
    ).frames[0]
    size = {"num_frames": 5, "fps": 8, "height": 32, "width": 48}
    kept = read_clip(output / "validation" / steps[-1] / "0.mp4", start=0.0, **size)
    assert (kept.float() - again.float()).abs().mean() < 8
    # Looking changes nothing.
    assert losses(config_of(made, tmp_path / "blind", every_steps=1000)) == shown
    whole, blind = (
        load_checkpoint(folder / "checkpoints" / "step-00000005")[0]["model"]
        for folder in (output, tmp_path / "blind")
    )
    assert all(torch.equal(whole[name], blind[name]) for name in whole)


def test_the_loss_is_that_of_its_definition(made: Path) -> None:
    cache = LatentCache(made / "cache")

    class Model(torch.nn.Module):
        def forward(self, noisy, timestep, encoder_hidden_states, return_dict):
            return (noisy * timestep.view(-1, 1, 1, 1, 1) / 1000 + encoder_hidden_states.mean(),)

    found = held_out_losses(Model(), cache, [1, 3], [0.25, 0.75], 7, torch.device("cpu"))
    for level in (0.25, 0.75):
        expected = []
        for number in (1, 3):
            clip = cache.latents(number, derive_generator(7, "held-out clip", number))
            generator = derive_generator(7, "held-out noise", number)
            loss = flow_matching_loss(
                Model(),
                clip[None],
                torch.tensor([level]),
                torch.randn(clip.shape, generator=generator)[None],
                prompt_embeds=cache.text(cache.index.clips[number].text)[None],
            )
            expected.append(float(loss))
        assert found[level] == pytest.approx(sum(expected) / 2)


def test_which_clips_are_held_out() -> None:
    chosen = choose_held_out(100, 10, 0)
    assert len(set(chosen)) == 10
    assert chosen == sorted(chosen) == choose_held_out(100, 10, 0)
    assert chosen != choose_held_out(100, 10, 1)


def test_what_is_refused(tmp_path: Path) -> None:
    for values, message in [
        ({"levels": ()}, r"levels is \(\); a list is allowed"),
        ({"levels": (0.0,)}, "levels is 0.0; numbers from 1e-06 to 1 are allowed"),
        ({"prompts": "a ball"}, "prompts is 'a ball'; a list is allowed"),
        ({"prompts": (3,)}, "prompts holds 3; texts are allowed"),
        ({"held_out": -1}, "held_out is -1"),
        ({"every_steps": 0}, "every_steps is 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            ValidationConfig(**values)
    with pytest.raises(ValueError, match=r"held_out=3 and 0 prompts, and data.cache is None"):
        replace(tiny_config(tmp_path), validation=ValidationConfig(held_out=3))
    assert ValidationConfig(levels=[0.5]) == ValidationConfig(levels=(0.5,))
