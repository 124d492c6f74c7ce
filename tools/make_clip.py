"""Make the clip that FreqFormer ships: a camera flight over two photographs, with something moving
in front.

    pip install scikit-learn
    python tools/make_clip.py src/freqformer/assets/pagoda.mp4

Three layers move with parallax: the pagoda of one photograph, and the dahlia cut out of the other,
once far and once near. The photographs come with scikit-learn and are free to use (CC BY 2.0);
their authors are named in ATTRIBUTION.md beside the clip.
"""

from __future__ import annotations

import argparse
import math

import torch
from sklearn.datasets import load_sample_image  # pyright: ignore[reportMissingImports] # the tool says so
from torch import Tensor
from torch.nn import functional

from freqformer.media import write_video

SECONDS, FPS, HEIGHT, WIDTH = 5, 24, 216, 384
SUPERSAMPLING = 2


def photograph(name: str) -> Tensor:
    """Float (3, rows, columns) in [0, 1]."""
    return torch.from_numpy(load_sample_image(name).copy()).permute(2, 0, 1) / 255


def blurred(x: Tensor, radius: int) -> Tensor:
    """Box blur, three times over, of (C, rows, columns)."""
    for _ in range(3):
        padded = functional.pad(x[None], [radius] * 4, mode="replicate")
        x = functional.avg_pool2d(padded, 2 * radius + 1, stride=1)[0]
    return x


def smoothstep(x: Tensor, low: float, high: float) -> Tensor:
    """0 below low, 1 above high, smooth between."""
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def dahlia() -> Tensor:
    """RGBA (4, side, side): the flower alone, centred."""
    top, left, side = 72, 155, 304
    photo = photograph("flower.jpg")[:, top : top + side, left : left + side]
    row, column = torch.meshgrid(
        torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij"
    )
    disk = 1 - smoothstep((row**2 + column**2).sqrt(), 0.93, 0.99)
    alpha = blurred((smoothstep(photo[0], 0.35, 0.55) * disk)[None], 1)
    return torch.cat([photo, alpha])


def view(layer: Tensor, centre: tuple[float, float], columns: float, angle: float) -> Tensor:
    """The layer seen by a camera: (channels, rows, columns) at the clip's size times the
    supersampling, clear outside.

    `centre` (column, row) and `columns`, the width seen, are in the layer's pixels; `angle` is in
    radians.
    """
    height, width = HEIGHT * SUPERSAMPLING, WIDTH * SUPERSAMPLING
    x = (torch.arange(width) + 0.5) / width - 0.5
    y = ((torch.arange(height) + 0.5) / height - 0.5) * height / width
    y, x = torch.meshgrid(y * columns, x * columns, indexing="ij")
    column = centre[0] + x * math.cos(angle) - y * math.sin(angle)
    row = centre[1] + x * math.sin(angle) + y * math.cos(angle)
    place = torch.stack([2 * column / layer.shape[2] - 1, 2 * row / layer.shape[1] - 1], -1)
    return functional.grid_sample(layer[None], place[None], align_corners=False)[0]


def over(front: Tensor, back: Tensor) -> Tensor:
    """The front layer (4, rows, columns) upon a picture (3, rows, columns)."""
    return front[3:] * front[:3] + (1 - front[3:]) * back


def main() -> None:
    """Render every frame and write the clip."""
    parser = argparse.ArgumentParser(description="Make the clip that FreqFormer ships.")
    parser.add_argument("path", help="the MP4 to write")
    path = parser.parse_args().path
    pagoda, flower = photograph("china.jpg"), dahlia()
    middle = flower.shape[2] / 2
    frames = []
    for index in range(SECONDS * FPS):
        # One full swing, so that the clip loops.
        phase = 2 * math.pi * index / (SECONDS * FPS)
        swing, lift = math.sin(phase), math.cos(phase)
        picture = view(pagoda, (308 + 40 * swing, 205 + 12 * lift), 490 + 50 * lift, 0.035 * swing)
        for width, reach, height, delay in ((1800, 0.36, 0.1, 2.2), (860, 0.3, -0.02, 0.5)):
            columns = width * (1 - 0.15 * lift)
            aside = columns * reach * math.sin(phase + delay)
            centre = (
                middle + aside,
                middle + columns * (height + 0.08 * math.cos(2 * phase + delay)),
            )
            picture = over(view(flower, centre, columns, 1.2 * swing + delay), picture)
        frames.append(functional.avg_pool2d(picture[None], SUPERSAMPLING)[0])
    clip = (torch.stack(frames).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    write_video(clip, path, FPS)


if __name__ == "__main__":
    main()
