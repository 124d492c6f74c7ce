"""Captions decide what is generated: the whole chain on videos that only their captions tell
apart."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.text_is_used import VIDEOS, measure
from tests.support.tiny_encoders import tiny_vae
from tests.support.told_clips import CAPTIONS, scale_to_one, shown, told_latents


def test_the_measure_knows_real_clips() -> None:
    vae = tiny_vae().eval()
    scale_to_one(vae)
    latents = told_latents(vae, 72)
    for place in range(len(CAPTIONS)):
        assert shown(latents[place, 64:], latents[:, :64]) == [place] * 8


@pytest.mark.slow
def test_swapping_captions_swaps_what_is_seen(tmp_path: Path) -> None:
    found = measure(tmp_path)
    assert [sum(counts) for counts in found["seen"].values()] == [VIDEOS // 4] * 4
    assert found["accuracy"] >= 0.95
