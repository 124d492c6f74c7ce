"""VAEs that code chunks of frames: how many latents a video has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.modular_pipelines.minimax_h3.modular_pipeline import video_latent_num_frames
from tests.support.sound_pipelines import minimax_h3_parts
from tests.support.tiny_encoders import tiny_vae
from tests.support.tiny_minimax import VIDEO

from freqformer.models.chunked import (
    Chunks,
    allowed_frames,
    as_shown,
    as_vae_takes,
    chunks_of,
    latent_frames,
)
from freqformer.models.latents import encode, latent_size
from freqformer.training.cache.buckets import Buckets
from freqformer.training.cache.errors import CacheError
from freqformer.training.cache.vae import VideoVae

CHUNKS = Chunks(17, 5, 3)


def test_lengths_are_those_of_the_pipeline() -> None:
    for frames in range(1, 200):
        found = latent_frames(frames, 4, CHUNKS)
        if frames == 1:
            assert found == 1
        elif frames % 17 == 5:
            assert found == video_latent_num_frames(frames, 17, 5)
        else:
            assert found is None
    assert latent_frames(0, 4, CHUNKS) is None
    assert [latent_frames(frames, 4, None) for frames in (0, 1, 4, 5)] == [None, 1, None, 2]
    assert (allowed_frames(4, None), allowed_frames(4, CHUNKS)) == ("4 * k + 1", "1 or 17 * k + 5")


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_the_vae_codes_so_many(tmp_path: Path) -> None:
    vae = minimax_h3_parts(VIDEO)["vae"]
    assert chunks_of(vae) == CHUNKS
    assert chunks_of(tiny_vae()) is None
    for frames in (1, 5, 22):
        clip = torch.zeros(1, 3, frames, 8, 8)
        assert tuple(encode(clip, vae).mean.shape[2:]) == latent_size((frames, 8, 8), vae)
    clip = torch.rand(1, 3, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    takes = as_vae_takes(clip, vae)
    vae.save_pretrained(str(tmp_path))
    half = VideoVae.load(tmp_path, torch.bfloat16, tiling=False).vae
    assert half.dtype == torch.bfloat16
    assert torch.equal(encode(clip, half).mean, encode(clip, vae).mean)
    torch.testing.assert_close(as_shown(takes, vae), clip)
    assert torch.equal(as_vae_takes(clip, tiny_vae()), clip)
    with pytest.raises(ValueError, match=r"num_frames = 1 or 17 \* k \+ 5 and multiples of 4"):
        latent_size((23, 8, 8), vae)


def test_clips_have_such_lengths() -> None:
    given = {"fps": 24.0, "compression": (4, 16), "multiple": None, "chunks": CHUNKS}
    assert Buckets.of([(64, 64)], [22, 124], **given).frames == (22, 124)
    with pytest.raises(CacheError, match=r"frames is 81; 1 or 17 \* k \+ 5 .* like 73 or 90"):
        Buckets.of([(64, 64)], [81], **given)
