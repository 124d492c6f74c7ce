"""The bands of a clip: they add up, energies are counted once, and each holds what its name
says."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freqformer.analysis.spectra import band_frames, clip_spectrum
from freqformer.config import FreqFormerConfig
from freqformer.media import from_unit

CONFIG = FreqFormerConfig()


@settings(max_examples=40, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 13)),
    patch=st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(1, 4)),
    seed=st.integers(0, 99),
)
def test_bands_and_energies_add_up(
    grid: tuple[int, int, int], patch: tuple[int, int, int], seed: int
) -> None:
    shape = [extent * side for extent, side in zip(grid, patch, strict=True)]
    clip = torch.rand(3, *shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    spectrum = clip_spectrum(clip, CONFIG, patch)
    torch.testing.assert_close(spectrum.bands.sum(0) + spectrum.mean, clip, atol=2e-6, rtol=0)
    rest = clip - clip.mean((1, 2, 3), keepdim=True)
    steps = zip(spectrum.first_frames, spectrum.first_frames[1:], strict=False)
    expected = torch.stack([rest[:, a:b].double().square().sum() for a, b in steps])
    torch.testing.assert_close(spectrum.energies.sum(-1), expected, rtol=1e-5, atol=1e-6)
    assert spectrum.first_frames[-1] == shape[0]
    assert len(spectrum.first_frames) == spectrum.layout.tiles[0] + 1


def test_a_constant_clip_has_no_energy() -> None:
    spectrum = clip_spectrum(torch.full((3, 4, 16, 16), 0.3), CONFIG)
    assert spectrum.energies.sum() < 1e-9
    assert spectrum.total_shares == pytest.approx((0, 0, 0), abs=1)
    frames, factors = band_frames(spectrum)
    assert factors == (1, 1)
    assert torch.equal(frames[0], frames[1])


def test_smooth_is_low_and_noise_is_not() -> None:
    x = torch.linspace(0, math.pi, 64)
    smooth = (x.cos()[:, None] + x.cos()[None, :]).expand(3, 8, 64, 64) / 2
    noise = torch.rand(3, 8, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert clip_spectrum(smooth, CONFIG, (1, 1, 1)).total_shares[0] > 0.98
    low, mid, high = clip_spectrum(noise, CONFIG, (1, 1, 1)).total_shares
    # White noise puts the same into each coefficient: 4 of 128 are low.
    assert low == pytest.approx(4 / 128, rel=0.1)
    assert min(mid, high) > 0.3


def test_motion_moves_energy_out_of_the_low_band() -> None:
    """A stripe that stands still, then moves: its energy leaves the low band when it starts."""
    columns = torch.arange(64)
    place = torch.cat([torch.full((16,), 16), 16 + 2 * torch.arange(16)])
    stripe = torch.exp(-((columns - place[:, None]) ** 2) / 30.0)
    clip = stripe[None, :, None, :].expand(3, -1, 32, -1) * 2 - 1
    shares = clip_spectrum(clip, FreqFormerConfig(tile=(4, 4, 8)), (1, 1, 1)).shares
    assert shares.shape[0] == 8
    assert shares[5:, 0].max() < shares[:3, 0].min() - 0.01


def test_pictures_of_the_bands() -> None:
    clip = torch.rand(3, 8, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    spectrum = clip_spectrum(clip, CONFIG, (1, 2, 2))
    frames, (mid_factor, high_factor) = band_frames(spectrum)
    assert frames.shape == (4, 8, 32, 32, 3)
    assert (frames[0].int() - from_unit(clip).int()).abs().max() <= 1
    for picture, band, factor in ((frames[2], 1, mid_factor), (frames[3], 2, high_factor)):
        values = spectrum.bands[band].abs() * factor
        assert 0.005 < (values > 1).float().mean() < 0.015
        assert abs(picture.float().mean() - 127.5) < 3


def test_wrong_clips_are_refused() -> None:
    with pytest.raises(ValueError, match="clip is"):
        clip_spectrum(torch.zeros(1, 8, 32, 32), CONFIG)
    with pytest.raises(ValueError, match=r"multiples of the patch \(1, 4, 4\)"):
        clip_spectrum(torch.zeros(3, 8, 30, 32), CONFIG)
