"""Captions in the way of a whole pipeline: what a cache keeps of them, and who may train on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from tests.support.tiny_finetuning import (
    CAPTIONS,
    lora_config,
    make_pipeline_and_cache,
    pipeline_cache,
)
from tests.support.tiny_training import changed

from freqformer.training.cache.clips import CachedClips
from freqformer.training.cache.making import make_cache
from freqformer.training.cache.reading import LatentCache
from freqformer.training.config import DataConfig, TrainConfig
from freqformer.training.loop import train

SIZE = (32, 48)


@pytest.fixture(scope="module")
def hunyuan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `pipe`, `videos` and `cache`; not to be changed."""
    return make_pipeline_and_cache(tmp_path_factory.mktemp("hunyuan"), "hunyuan", size=SIZE)


@torch.no_grad()
def test_it_holds_what_the_pipeline_makes_of_a_prompt(hunyuan: Path) -> None:
    cache = LatentCache(hunyuan / "cache")
    assert cache.index.text_pipeline == "HunyuanVideoPipeline"
    assert not (hunyuan / "cache" / "text_encoder").exists()
    pipe: Any = DiffusionPipeline.from_pretrained(hunyuan / "pipe")
    told = {clip.file: clip.text for clip in cache.index.clips}
    for number, caption in ((0, ""), *((told[f"{n}.mp4"], CAPTIONS[n]) for n in (0, 1))):
        embeds, pooled, mask = pipe.encode_prompt(caption)
        found = cache.caption(number)
        expected = embeds[0][mask[0].bool()]
        assert found.tokens.shape == expected.shape
        torch.testing.assert_close(found.tokens, expected, rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(found.others["pooled_embeds"], pooled[0], rtol=1e-2, atol=1e-2)


def test_clips_that_are_dropped_have_nothing_of_their_caption(hunyuan: Path) -> None:
    never = CachedClips(hunyuan / "cache", 0, batch_size=1, caption_dropout=1.0)
    empty = never.cache.caption(0)
    sample = never.load(0)
    assert torch.equal(sample.conditions["pooled_embeds"], empty.others["pooled_embeds"])
    shown = CachedClips(hunyuan / "cache", 0, batch_size=1, caption_dropout=0.0).load(0)
    assert not torch.equal(shown.conditions["pooled_embeds"], empty.others["pooled_embeds"])


def test_other_models_are_refused(hunyuan: Path, tmp_path: Path) -> None:
    config = TrainConfig(str(tmp_path / "run"), data=DataConfig(cache=str(hunyuan / "cache")))
    with pytest.raises(ValueError, match="made in the way of a HunyuanVideoPipeline; such a"):
        train(config)


def test_a_changed_second_encoder_is_another(hunyuan: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(hunyuan, tmp_path / "copied"))
    weights = folder / "pipe" / "text_encoder_2" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"another text encoder than that of .* --text-encoder"):
        train(lora_config(folder, folder / "run", density=1.0))
    with pytest.raises(ValueError, match="is a cache made otherwise: text_encoder was"):
        make_cache(pipeline_cache(folder, sizes=(SIZE,)))
    shutil.rmtree(folder / "pipe" / "tokenizer_2")
    with pytest.raises(ValueError, match="a HunyuanVideoPipeline without tokenizer_2; give"):
        make_cache(pipeline_cache(folder, sizes=(SIZE,)))


def test_a_pipeline_that_is_not_known_any_more(hunyuan: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(hunyuan / "cache", tmp_path / "copied"))
    cache = LatentCache(folder)
    cache.index.recipe["text_pipeline"] = "OtherPipeline"
    cache.index.write(folder)
    assert json.loads((folder / "index.json").read_text())["recipe"]["text_pipeline"]
    with pytest.raises(ValueError, match="in the way of a 'OtherPipeline'; HunyuanVideoPipeline"):
        LatentCache(folder)


def test_held_out_clips_are_told_all_of_their_caption(hunyuan: Path, tmp_path: Path) -> None:
    config = lora_config(hunyuan, tmp_path / "run", density=1.0)
    train(changed(config, "validation", held_out=1, levels=(0.5,)))
