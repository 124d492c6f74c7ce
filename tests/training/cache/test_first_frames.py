"""First frames in a cache are what image-to-video pipelines tell their transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL import Image
from tests.support.tiny_finetuning import lora_config, make_pipeline_and_cache, pipeline_cache

from freqformer.media import read_clip, to_unit
from freqformer.training.cache.making import make_cache
from freqformer.training.cache.reading import LatentCache
from freqformer.training.config import DataConfig, TrainConfig
from freqformer.training.loop import train
from freqformer.training.seeding import derive_generator

SIZE = (32, 48)
FRAMES = 17


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `pipe`, of Wan 2.1, `videos` and `cache`; not to be changed."""
    return make_pipeline_and_cache(tmp_path_factory.mktemp("i2v"), "wan-2.1-i2v", size=SIZE)


@torch.no_grad()
def test_it_holds_what_the_pipeline_makes_of_a_frame(made: Path) -> None:
    cache = LatentCache(made / "cache")
    pipe: Any = DiffusionPipeline.from_pretrained(made / "pipe")
    height, width = SIZE
    for number, clip in enumerate(cache.index.clips):
        found = cache.clip(number, derive_generator(0))
        path = made / "videos" / clip.file
        frames = read_clip(path, start=0, num_frames=1, fps=8, height=height, width=width)
        image = to_unit(frames)[:, 0][None]
        _, expected = pipe.prepare_latents(
            image, 1, 16, height, width, FRAMES, torch.float32, torch.device("cpu")
        )
        told = found.conditions["condition"]
        torch.testing.assert_close(told, expected[0], rtol=2e-3, atol=2e-3)
        seen = pipe.encode_image(Image.fromarray(frames[0].numpy()))
        told = found.conditions["image_embeds"]
        torch.testing.assert_close(told, seen[0], rtol=2e-3, atol=2e-3)


def test_other_models_and_other_caches_are_refused(made: Path, tmp_path: Path) -> None:
    config = TrainConfig(str(tmp_path / "run"), data=DataConfig(cache=str(made / "cache")))
    with pytest.raises(ValueError, match="made in the way of a WanImageToVideoPipeline; such a"):
        train(config)
    alone = pipeline_cache(
        made, vae=str(made / "pipe" / "vae"), output=str(made / "alone"), sizes=(SIZE,)
    )
    assert make_cache(alone).conditions == ()
    plain = lora_config(made, tmp_path / "run", density=1.0)
    assert plain.data.cache is not None
    config = TrainConfig(
        plain.output,
        pipeline=plain.pipeline,
        data=DataConfig(cache=str(made / "alone")),
        run=plain.run,
    )
    with pytest.raises(ValueError, match="made by another way of coding first frames than that"):
        train(config)
