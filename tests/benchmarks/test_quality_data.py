"""Clips of the quality study: repeatable, in range, held-out parts apart, and an object that really
comes back."""

from __future__ import annotations

import pytest
import torch
from benchmarks.quality import data

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scenes() -> data.Scenes:
    return data.draw_scenes(24, 3, CPU)


def test_clips_have_their_shape_and_range(scenes: data.Scenes) -> None:
    assert scenes.video.shape == (24, 3, 16, 64, 64)
    assert scenes.video.dtype == torch.float32
    assert float(scenes.video.abs().max()) <= 1
    # Every clip has contrast, and every clip moves.
    assert float(scenes.video.std((1, 2, 3, 4)).min()) > 0.05
    assert float(scenes.video.diff(dim=2).abs().mean((1, 2, 3, 4)).min()) > 0.002


def test_one_seed_gives_the_same_bits_and_another_other_clips() -> None:
    first, again, other = (
        data.draw_scenes(3, seed, CPU, frames=5, side=16).video for seed in (7, 7, 8)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], first[1])


def test_held_out_crops_share_no_column_with_training() -> None:
    width = data.photographs(CPU).shape[2]
    for side in (data.SIDE, data.CANVAS):
        (_, trained), (held, last) = (
            data.crop_columns(width, side, held_out) for held_out in (False, True)
        )
        assert trained > 0
        assert trained + side <= held <= last
        assert last + side <= width


def test_held_out_clips_show_other_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """With photographs white from the trained columns on, only held-out textures are white."""
    pictures = torch.zeros_like(data.photographs(CPU))
    pictures[:, :, int(data.TRAINED_COLUMNS * pictures.shape[2]) :] = 1
    monkeypatch.setattr(data, "photographs", lambda device: pictures)
    monkeypatch.setattr(data, "PHOTOGRAPH_SHARE", 1.0)
    for held_out in (False, True):
        drawn = data.textures(data.Draw(0, CPU), 64, data.CANVAS, held_out)
        assert torch.equal(drawn, torch.full_like(drawn, float(held_out)))


def test_the_object_hides_for_long_and_comes_back_far_away(scenes: data.Scenes) -> None:
    assert not bool(scenes.hidden[:, [0, 1, 14, 15]].any())
    assert bool(scenes.hidden[:, 5:10].all())
    away = scenes.hidden.sum(1)
    assert 6 <= int(away.min()) <= int(away.max()) <= 8
    distance = (scenes.place[:, -1] - scenes.place[:, 0]).norm(dim=-1)
    assert float(distance.min()) > 24


def test_the_object_comes_back_with_its_texture(scenes: data.Scenes) -> None:
    """Its first and its last appearance agree pixel by pixel about its centre, and no clip's agrees
    with another's."""
    first, last = (_around(scenes, frame) for frame in (0, 15))
    same = (first - last).square().mean((1, 2))
    others = (first - last.roll(1, 0)).square().mean((1, 2))
    assert float(same.median()) < 0.1 * float(others.median())


def test_nothing_of_it_is_seen_while_it_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an object of another texture, the frames in which it is hidden stay the same and the
    others do not."""
    plain = data.draw_scenes(12, 5, CPU)
    over, calls = data._over, []

    def inverted(video, texture, *rest):
        calls.append(texture)
        return over(video, -texture if len(calls) == data.SPRITES + 1 else texture, *rest)

    monkeypatch.setattr(data, "_over", inverted)
    changed = data.draw_scenes(12, 5, CPU)
    differs = (plain.video != changed.video).any(1).flatten(2).any(2)
    assert torch.equal(differs & plain.hidden, torch.zeros_like(plain.hidden))
    assert bool(differs[:, [0, 15]].all())


def _around(scenes: data.Scenes, frame: int) -> torch.Tensor:
    """Colours at the 5 x 5 points two pixels apart about the object's centre: (B, 3, 25)."""
    steps = torch.arange(-2, 3) * 1.5
    points = torch.cartesian_prod(steps, steps) + scenes.place[:, frame, None]
    grid = points[:, None] / 32 - 1
    return torch.nn.functional.grid_sample(scenes.video[:, :, frame], grid, align_corners=False)[
        :, :, 0
    ]
