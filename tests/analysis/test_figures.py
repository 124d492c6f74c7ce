"""Figures are pictures of what they are given, the same for the same numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from freqformer.analysis.figures import (
    allocation_figure,
    energies_figure,
    labelled_grid,
    loss_figure,
    weights_figure,
)
from freqformer.analysis.spectra import clip_spectrum
from freqformer.config import FreqFormerConfig
from freqformer.media import read_clip


def picture(path: Path) -> torch.Tensor:
    with path.open("rb") as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"
    header = path.read_bytes()[16:24]
    width, height = int.from_bytes(header[:4]), int.from_bytes(header[4:])
    return read_clip(path, start=0, num_frames=1, fps=1, height=height, width=width)[0]


def colours(image: torch.Tensor) -> set[tuple[int, ...]]:
    return {tuple(row) for row in image.flatten(0, 1).unique(dim=0).tolist()}


BLUE, GREEN, VERMILION, GREY = (0, 114, 178), (0, 158, 115), (213, 94, 0), (118, 118, 118)


def test_energies(tmp_path: Path) -> None:
    clip = torch.rand(3, 12, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    spectrum = clip_spectrum(clip, FreqFormerConfig(), (1, 2, 2))
    for name in ("a.png", "b.png"):
        energies_figure(spectrum, 8.0, tmp_path / "new" / name)
    assert (tmp_path / "new/a.png").read_bytes() == (tmp_path / "new/b.png").read_bytes()
    assert {BLUE, GREEN, VERMILION} <= colours(picture(tmp_path / "new" / "a.png"))


def test_loss(tmp_path: Path) -> None:
    losses = [1 / (1 + step / 10) for step in range(60)]
    loss_figure(range(1, 61), losses, tmp_path / "loss.png")
    loss_figure(range(1, 61), losses[::-1], tmp_path / "other.png")
    assert BLUE in colours(picture(tmp_path / "loss.png"))
    assert (tmp_path / "loss.png").read_bytes() != (tmp_path / "other.png").read_bytes()
    loss_figure([1], [0.5], tmp_path / "one.png")
    for steps, values in (([], []), ([1, 2], [0.5])):
        with pytest.raises(ValueError, match="steps has"):
            loss_figure(steps, values, tmp_path / "none.png")


def test_allocation(tmp_path: Path) -> None:
    path = tmp_path / "bands.png"
    allocations = torch.zeros(4, 2, 3, dtype=torch.int64)
    allocations[2:] = 2
    allocation_figure(allocations, [1.0, 0.7, 0.4, 0.1], path)
    image = picture(path)
    # The legend names all three bands; the map itself is blue on the left and vermilion on the
    # right.
    map_ = image[
        image.shape[0] // 4 : image.shape[0] // 2, image.shape[1] // 5 : 3 * image.shape[1] // 4
    ]
    blue = (map_ == torch.tensor(BLUE)).all(-1).nonzero()[:, 1]
    vermilion = (map_ == torch.tensor(VERMILION)).all(-1).nonzero()[:, 1]
    assert len(blue) > 500
    assert len(vermilion) > 500
    assert blue.max() < vermilion.min()
    assert GREEN not in colours(map_)
    assert GREY not in colours(image)
    allocation_figure(torch.full((1, 1, 2), 3), [1.0], path)
    assert GREY in colours(picture(path))
    with pytest.raises(ValueError, match="allocations has shape"):
        allocation_figure(allocations, [1.0], path)


def test_weights(tmp_path: Path) -> None:
    path = tmp_path / "weights.png"
    weights = torch.full((4, 2, 3), -1.0)
    weights[2:] = 1.0
    weights_figure(weights, [1.0, 0.7, 0.4, 0.1], path)
    map_ = picture(path).int()
    map_ = map_[
        map_.shape[0] // 4 : map_.shape[0] // 2, map_.shape[1] // 5 : 3 * map_.shape[1] // 4
    ]
    blue, red = ((map_[..., 2 - other] > 60 + map_[..., other]).nonzero()[:, 1] for other in (0, 2))
    assert len(blue) > 500
    assert len(red) > 500
    assert blue.max() < red.min()
    with pytest.raises(ValueError, match="weights has shape"):
        weights_figure(weights, [1.0], path)


def test_labelled_grid() -> None:
    clips = (
        torch.arange(4, dtype=torch.uint8)[:, None, None, None, None].expand(-1, 3, 10, 180, 3) * 60
    )
    grid = labelled_grid(clips, ["one", "two", "three", "four"])
    assert grid.shape == (3, 40, 360, 3)
    for index, (top, left) in enumerate([(10, 0), (10, 180), (30, 0), (30, 180)]):
        assert (grid[:, top : top + 10, left : left + 180] == 60 * index).all()
    strip = grid[0, :10, :180].float()
    assert strip.max() == 255
    assert strip.min() < 128
    with pytest.raises(ValueError, match="3 labels"):
        labelled_grid(clips, ["one", "two", "three"])
