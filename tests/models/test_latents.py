"""Coding videos: the mean and variance of a VAE, on the scale that the model sees."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tests.support.tiny_encoders import tiny_vae

from freqformer.models.latents import decode, encode


@pytest.mark.parametrize(("name", "side"), [("wan", 8), ("ltx", 4)])
def test_latents_are_scaled_as_decoding_undoes(name, side, monkeypatch) -> None:
    vae = tiny_vae(name)
    video = torch.rand(2, 3, 5, 16, 24) * 2 - 1
    posterior = encode(video, vae)
    assert posterior.mean.shape == (2, 4, 2, 16 // side, 24 // side)
    own = vae.encode(video).latent_dist
    seen = {}
    monkeypatch.setattr(vae, "decode", lambda z, **options: seen.update(z=z) or (z,))
    decode(posterior.mean, vae)
    torch.testing.assert_close(seen["z"], own.mean)
    # A sample lies as many deviations from the mean on either scale.
    sample = posterior.mean + (0.5 * posterior.logvar).exp() * 1.5
    decode(sample, vae)
    torch.testing.assert_close(seen["z"], own.mean + 1.5 * own.std.expand_as(own.mean))


def test_a_shift_is_taken_off_before_the_factor() -> None:
    vae = tiny_vae("wan")
    plain = encode(torch.zeros(1, 3, 1, 16, 16), vae).mean
    vae.register_to_config(
        latents_mean=None, latents_std=None, shift_factor=0.25, scaling_factor=2.0
    )
    raw = vae.encode(torch.zeros(1, 3, 1, 16, 16)).latent_dist.mean
    shifted = encode(torch.zeros(1, 3, 1, 16, 16), vae).mean
    torch.testing.assert_close(shifted, (raw - 0.25) * 2)
    assert not torch.equal(shifted, plain)


def test_what_is_refused(monkeypatch) -> None:
    vae = tiny_vae("wan")
    with pytest.raises(ValueError, match=r"num_frames = 4 \* k \+ 1"):
        encode(torch.zeros(1, 3, 4, 16, 16), vae)
    monkeypatch.setattr(vae, "encode", lambda video: SimpleNamespace(latent=video))
    with pytest.raises(ValueError, match="gives no distribution of latents"):
        encode(torch.zeros(1, 3, 1, 16, 16), vae)
