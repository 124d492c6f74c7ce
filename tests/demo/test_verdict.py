"""What the demo says of its own video."""

from __future__ import annotations

import pytest
import torch

from freqformer.demo.verdict import MOST_DECIBELS, Verdict, similarity

CLIP = torch.randint(0, 256, (4, 8, 8, 3), generator=torch.Generator().manual_seed(0)).to(
    torch.uint8
)


def verdict(video: torch.Tensor, steps: int = 10) -> Verdict:
    return Verdict.of(video, CLIP, steps=steps, planned_steps=10, seconds=30.0)


def test_similarity_is_the_peak_signal_to_noise_ratio():
    assert similarity(torch.zeros(1, 2, 2, 3), torch.full((1, 2, 2, 3), 255)) == 0
    assert similarity(torch.zeros(1, 2, 2, 3), torch.full((1, 2, 2, 3), 25.5)) == pytest.approx(20)
    assert similarity(CLIP, CLIP) == MOST_DECIBELS
    # In bytes, a difference below 0 would wrap around.
    assert similarity(CLIP, 255 - CLIP) == pytest.approx(similarity(255 - CLIP, CLIP))


@pytest.mark.parametrize(
    ("share", "judgement"),
    [(1.0, "gives the clip back"), (0.5, "can be recognised"), (0.0, "This is not the clip")],
)
def test_judgement_follows_what_is_right_of_the_clip(share, judgement):
    """A mixture of the clip and its mean colour."""
    mean = CLIP.float().mean((0, 1, 2))
    found = verdict((share * CLIP.float() + (1 - share) * mean).round().to(torch.uint8))
    assert judgement in found.judgement
    assert found.shortfall == ""
    assert found.lines() == [f"{found.similarity}. {found.judgement}"]
    assert f"{found.decibels:.1f} dB" in found.similarity


def test_noise_is_not_the_clip_and_a_clip_of_one_colour_is_judged_too():
    assert "not the clip" in verdict(CLIP.flip(0, 1, 2)).judgement
    black = torch.zeros_like(CLIP)
    assert (
        Verdict.of(black, black, steps=1, planned_steps=1, seconds=1.0).one_colour == MOST_DECIBELS
    )


def test_a_machine_that_is_too_slow_is_told_what_it_needs():
    slow = verdict(CLIP, steps=2)
    assert slow.shortfall == (
        "This machine was too slow: it did 2 of 10 training steps in 30 s. With --train-seconds "
        "180 it would do them all."
    )
    assert slow.lines()[1] == slow.shortfall
