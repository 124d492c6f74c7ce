"""Synthetic clips: repeatable, moving, and with all bands."""

from __future__ import annotations

import pytest
import torch

from freqformer.bands import band_energies
from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid
from freqformer.training.synthetic import SyntheticClips


def source(seed=0, **values):
    return SyntheticClips(seed, **{"num_frames": 8, "height": 32, "width": 48, **values})


def test_a_clip_follows_from_seed_and_index_alone():
    forwards = [source().load(i).clip for i in range(4)]
    backwards = [source().load(i).clip for i in reversed(range(4))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forwards, backwards, strict=True))
    others = [*forwards[1:], source(1).load(0).clip]
    assert all(not torch.equal(forwards[0], other) for other in others)
    assert source().fingerprint() == source().fingerprint() != source(1).fingerprint()
    assert source(width=32).fingerprint() != source().fingerprint()


@pytest.mark.parametrize(
    ("frames", "height", "width"), [(8, 32, 48), (1, 16, 16), (5, 90, 50), (2, 1, 1)]
)
def test_pixels_are_in_range_at_any_size(frames, height, width):
    clip = source(num_frames=frames, height=height, width=width).load(3)
    assert clip.clip.shape == (3, frames, height, width)
    assert clip.clip.dtype == torch.float32
    assert clip.failures == ()
    assert bool(clip.clip.isfinite().all())
    assert float(clip.clip.abs().max()) <= 1


def test_background_and_sprites_move():
    for index in range(5):
        clip = source().load(index).clip
        bare = source(sprites=0).load(index).clip
        assert float((bare[:, 1:] - bare[:, :-1]).abs().mean()) > 0.01
        covered = ((clip - bare).abs() > 1e-6).any(0)
        assert bool(covered.flatten(1).any(1).all()), "sprites are seen in every frame"
        assert not torch.equal(covered[0], covered[-1])
        assert float(covered.float().mean()) < 0.5


def test_frames_are_samples_of_one_motion():
    coarse, fine = (source(num_frames=frames).load(0).clip for frames in (3, 5))
    torch.testing.assert_close(coarse, fine[:, ::2], rtol=0, atol=1e-4)


def test_every_band_holds_energy():
    grid, config = Grid(8, 32, 48), FreqFormerConfig()
    for index in range(3):
        tokens = source().load(index).clip.flatten(1).T[None]
        share = band_energies(tokens - tokens.mean(1, keepdim=True), grid, config)[0]
        assert float((share / share.sum()).min()) > 1e-3
