"""Clips from photographs: repeatable, inside the photograph, with balls that move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from freqformer.media import contact_sheet
from freqformer.training import photographs
from freqformer.training.config import DataConfig
from freqformer.training.photographs import PhotographClips
from freqformer.training.sources import clip_source

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
    clip = first.load(7).clip
    assert clip.shape == (3, 6, 24, 36)
    assert clip.dtype == torch.float32
    assert clip.abs().max() <= 1
    assert torch.equal(clip, again.load(7).clip)
    assert not torch.equal(clip, first.load(8).clip)
    other = PhotographClips(places, 4, **SIZE)
    assert not torch.equal(clip, other.load(7).clip)
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()


def test_the_camera_moves_straight_within_the_photograph(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photographs, "BALLS", (0, 0))
    source = PhotographClips(places, 0, **SIZE)
    moves = []
    for index in range(40):
        red, green = source.load(index).clip[:2].double()
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
        pixels = source.load(index).clip
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
        torch.testing.assert_close(clip, source.load(index).clip, rtol=0, atol=1e-6)


def test_a_config_with_photographs_makes_such_clips(places: Path) -> None:
    source = clip_source(DataConfig(photographs=str(places), **SIZE), 5)
    assert torch.equal(source.load(0).clip, PhotographClips(places, 5, **SIZE).load(0).clip)
    with pytest.raises(ValueError, match="photographs is 'a' and path 'b'"):
        DataConfig(photographs="a", path="b")


def test_folders_that_do_not_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no photograph"):
        PhotographClips(tmp_path, 0, **SIZE)
    (tmp_path / "broken.jpg").write_text("no picture")
    with pytest.raises(ValueError, match=r"broken\.jpg can't be read"):
        PhotographClips(tmp_path, 0, **SIZE)


ORIENTED = {
    1: "RG/BY",
    2: "GR/YB",
    3: "YB/GR",
    4: "BY/RG",
    5: "RB/GY",
    6: "BR/YG",
    7: "YG/BR",
    8: "GY/RB",
}
COLOURS = {"R": (254, 0, 0), "G": (0, 255, 1), "B": (0, 0, 254), "Y": (255, 255, 0)}


@pytest.mark.parametrize(("orientation", "expected"), ORIENTED.items())
def test_photographs_are_turned_as_their_exif_says(
    tmp_path: Path, orientation: int, expected: str
) -> None:
    """F116."""
    picture = Image.new("RGB", (64, 64))
    for place, colour in enumerate(COLOURS.values()):
        picture.paste(
            colour,
            (32 * (place % 2), 32 * (place // 2), 32 * (place % 2) + 32, 32 * (place // 2) + 32),
        )
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "a.jpg", exif=exif, quality=95)
    (shown,) = photographs.read_photographs(tmp_path, 32, 32)
    names = {tuple(int(value > 127) for value in colour): name for name, colour in COLOURS.items()}
    found = [
        names[tuple((shown[:, row, column] > 0).int().tolist())]
        for row in (8, 24)
        for column in (8, 24)
    ]
    assert "".join(found[:2]) + "/" + "".join(found[2:]) == expected


def test_transparent_and_deep_photographs(tmp_path: Path) -> None:
    Image.new("RGBA", (32, 32), (255, 0, 255, 0)).save(tmp_path / "clear.png")
    Image.new("RGBA", (32, 32), (255, 0, 255, 255)).save(tmp_path / "opaque.png")
    Image.fromarray(np.full((32, 32), 128 * 257, np.uint16)).save(tmp_path / "sixteen.png")
    clear, opaque, sixteen = photographs.read_photographs(tmp_path, 8, 8)
    assert clear.max() == -1
    assert opaque.amax((1, 2)).tolist() == [1, -1, 1]
    assert (sixteen - (128 / 127.5 - 1)).abs().max() < 0.01


def test_bad_photographs_are_left_out_and_named(
    places: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """F112: whatever one does."""
    whole = (places / "places.png").read_bytes()
    (places / "cut.png").write_bytes(whole[: len(whole) // 2])
    (places / "text.jpg").write_text("no picture")
    # A header that claims 10**9 pixels.
    (places / "bomb.png").write_bytes(whole[:16] + (2**15).to_bytes(4) * 2 + whole[24:])
    (places / "folder.png").mkdir()
    assert photographs.read_photographs(places, 8, 8).shape == (1, 3, 8, 8)
    (record,) = caplog.records
    message = record.getMessage()
    assert "3 of 4 photographs" in message
    assert all(name in message for name in ("cut.png", "text.jpg", "bomb.png"))
