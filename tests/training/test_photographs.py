"""Clips from photographs: repeatable, inside the photograph, with balls that move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from freqformer.media import contact_sheet
from freqformer.training import photographs
from freqformer.training.config import DataConfig
from freqformer.training.photographs import PhotographClips
from freqformer.training.run import clip_source

SIZE: dict[str, Any] = {"num_frames": 6, "height": 24, "width": 36}


def write_photograph(path: Path, pixels: torch.Tensor) -> None:
    """A PNG of uint8 (H, W, 3)."""
    contact_sheet(pixels[None], path)


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """A folder with one photograph whose red tells the column and whose green the row."""
    picture = torch.full((48, 72, 3), 128, dtype=torch.uint8)
    picture[..., 0] = torch.linspace(0, 255, 72).round()
    picture[..., 1] = torch.linspace(0, 255, 48).round()[:, None]
    write_photograph(tmp_path / "places.png", picture)
    return tmp_path


def test_clips_repeat_by_index_and_differ_by_seed(places: Path) -> None:
    first, again = (PhotographClips(places, 3, **SIZE) for _ in range(2))
    clip = first.load(7).pixels
    assert clip.shape == (3, 6, 24, 36)
    assert clip.dtype == torch.float32
    assert clip.abs().max() <= 1
    assert torch.equal(clip, again.load(7).pixels)
    assert not torch.equal(clip, first.load(8).pixels)
    other = PhotographClips(places, 4, **SIZE)
    assert not torch.equal(clip, other.load(7).pixels)
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()


def test_the_camera_moves_straight_within_the_photograph(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photographs, "BALLS", (0, 0))
    source = PhotographClips(places, 0, **SIZE)
    moves = []
    for index in range(40):
        red, green = source.load(index).pixels[:2].double()
        # A view beyond the border would repeat or fold colours; within it both rise by equal steps.
        for colour, axis in ((red, 2), (green, 1)):
            steps = colour.diff(dim=axis)
            assert steps.min() > 0
            assert (steps - steps.mean(axis, keepdim=True)).abs().max() < 0.02
        middle = torch.stack([red[:, 12, 18], green[:, 12, 18]])
        assert (middle.diff(n=2, dim=1)).abs().max() < 0.02
        moves.append(float((middle[:, -1] - middle[:, 0]).norm()))
    assert max(moves) > 0.5
    assert min(moves) < 0.2


def test_balls_are_in_every_frame_and_move(tmp_path: Path) -> None:
    write_photograph(tmp_path / "grey.png", torch.full((48, 72, 3), 128, dtype=torch.uint8))
    source = PhotographClips(tmp_path, 0, **SIZE)
    paths = []
    for index in range(20):
        pixels = source.load(index).pixels
        # Shadows are grey; balls have colours.
        coloured = (pixels.amax(0) - pixels.amin(0)) > 0.2
        shares = coloured.flatten(1).double().mean(1)
        assert shares.min() > 0.01
        assert shares.max() < 0.6
        rows = (coloured.double() * torch.arange(24.0)[:, None]).sum((1, 2)) / coloured.sum((1, 2))
        paths.append(float((rows[-1] - rows[0]).abs()))
    assert max(paths) > 4


def test_clips_are_the_same_one_by_one_and_together(places: Path) -> None:
    source, cpu = PhotographClips(places, 0, **SIZE), torch.device("cpu")
    together = source.draw(range(12), cpu)
    assert together.shape == (12, 3, 6, 24, 36)
    balls = {len(source._numbers(index)[2]) for index in range(12)}
    assert balls == {1, 2, 3}
    for index, clip in enumerate(together):
        torch.testing.assert_close(clip, source.load(index).pixels, rtol=0, atol=1e-6)


def test_a_config_with_photographs_makes_such_clips(places: Path) -> None:
    source = clip_source(DataConfig(photographs=str(places), **SIZE), 5)
    assert torch.equal(source.load(0).pixels, PhotographClips(places, 5, **SIZE).load(0).pixels)
    with pytest.raises(ValueError, match="photographs is 'a' and path 'b'"):
        DataConfig(photographs="a", path="b")


def test_folders_that_do_not_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no photograph"):
        PhotographClips(tmp_path, 0, **SIZE)
    (tmp_path / "broken.jpg").write_text("no picture")
    with pytest.raises(ValueError, match=r"broken\.jpg can't be read"):
        PhotographClips(tmp_path, 0, **SIZE)
