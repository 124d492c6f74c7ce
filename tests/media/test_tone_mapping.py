"""HDR becomes the SDR of BT.709: greys stay grey and in order, and colours keep their hue."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from freqformer.media import read_clip
from freqformer.media.tone_mapping import _mapper

PQ, HLG = 16, 18
GREYS = (0, 1, 5, 20, 50, 100, 203, 400, 1000)
"""In nits; 203 are the white of a page (ITU-R BT.2408)."""
PATCH = 16
"""Pixels of a side."""
FROM_BT709 = np.array(
    [
        [0.627404, 0.329283, 0.043313],
        [0.069097, 0.919540, 0.011362],
        [0.016391, 0.088013, 0.895595],
    ]
)
"""Light of BT.709's primaries in those of BT.2020 (ITU-R BT.2087)."""
RED = 100 * FROM_BT709 @ np.array([1.0, 0.0, 0.0])
"""BT.709's red at 100 nits."""
MASTERED = (
    "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
    ":max-cll=1000,400:"
)
"""What x265 writes of a display of 1,000 nits."""


def pq(nits: np.ndarray) -> np.ndarray:
    """The signal of an absolute luminance (SMPTE ST 2084)."""
    light = (nits / 10000) ** (2610 / 16384)
    top = 3424 / 4096 + 2413 / 128 * light
    return (top / (1 + 2392 / 128 * light)) ** (2523 / 32)


def hlg(nits: np.ndarray) -> np.ndarray:
    """The signal of a scene whose white is 1,000 nits (ITU-R BT.2100)."""
    scene = nits / 1000
    bright = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), bright)


def patches() -> np.ndarray:
    """Light (2 x PATCH, n x PATCH, 3) in nits: greys over a row of red, in BT.2020."""
    greys = np.repeat(np.array(GREYS, float), 3).reshape(1, -1, 3)
    red = np.broadcast_to(RED, greys.shape)
    return np.concatenate([greys, red]).repeat(PATCH, 0).repeat(PATCH, 1)


def planes(signal: np.ndarray) -> list[np.ndarray]:
    """Y, Cb and Cr of BT.2020 in 10 bits, colours of every second row and column."""
    red, _, blue = np.moveaxis(signal, -1, 0)
    luma = signal @ np.array([0.2627, 0.6780, 0.0593])
    colours = [(blue - luma) / 1.8814, (red - luma) / 1.4746]
    return [64 + 876 * luma, *(512 + 896 * colour[::2, ::2] for colour in colours)]


def hdr(path: Path, transfer: int, brightest: str = "") -> Path:
    """A file of one frame with `patches`.

    Without B-frames: x265 computes decoding times from as many frames as it reorders, and reads
    memory that nobody wrote where a file has fewer, which muxers refuse at random
    (`MALLOC_PERTURB_=1` shows it every time).
    """
    signal = (pq if transfer == PQ else hlg)(patches())
    height, width, _ = signal.shape
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=25)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p10le"
        stream.options = {"x265-params": f"{brightest}lossless=1:bframes=0:log-level=none"}
        frame = av.VideoFrame(width, height, "yuv420p10le")
        frame.pts = 0
        for one in (stream.codec_context, frame):
            one.color_primaries = one.colorspace = 9
            one.color_trc = transfer
            one.color_range = 1
        for plane, values in zip(frame.planes, planes(signal), strict=True):
            rows = np.zeros((plane.height, plane.line_size // 2), np.uint16)
            rows[:, : values.shape[1]] = values.round()
            plane.update(rows.tobytes())
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def shown(path: Path) -> torch.Tensor:
    """The middles of all patches: float (2, n, 3), greys before red."""
    size = {"height": 2 * PATCH, "width": len(GREYS) * PATCH}
    (picture,) = read_clip(path, start=0, num_frames=1, fps=1, **size)
    return picture[PATCH // 2 :: PATCH, PATCH // 2 :: PATCH].float()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("hdr")
    return {
        "mastered": hdr(folder / "mastered.mkv", PQ, MASTERED),
        "untold": hdr(folder / "untold.mkv", PQ),
        "hlg": hdr(folder / "hlg.mkv", HLG),
    }


@pytest.mark.parametrize("name", ["mastered", "untold", "hlg"])
def test_greys_stay_grey_and_in_order(files: dict[str, Path], name: str) -> None:
    greys, _ = shown(files[name])
    assert (greys.amax(-1) - greys.amin(-1)).max() <= 2
    means = greys.mean(-1).tolist()
    assert all(after > before for before, after in pairwise(means))
    assert means[0] <= 2


def test_what_the_file_says_of_its_brightest_pixels_counts(files: dict[str, Path]) -> None:
    mastered, _ = shown(files["mastered"])
    untold, _ = shown(files["untold"])
    assert mastered[-1].min() >= 250  # 1,000 nits, the brightest there is
    white = GREYS.index(203)
    assert untold[-1].max() < 220  # 10,000 might come
    assert mastered[white].mean() > untold[white].mean() + 10


def test_a_colour_of_bt709_keeps_its_hue(files: dict[str, Path]) -> None:
    """Shown as it is stored, BT.709's red at 100 nits is (116, 67, 45)."""
    for name in ("mastered", "untold"):
        _, red = shown(files[name])
        assert red[:, 0].min() > 100
        assert red[:, 1:].max() < 0.3 * red[:, 0].min()


def test_threads_share_a_mapper(files: dict[str, Path]) -> None:
    alone = shown(files["mastered"])
    made = _mapper.cache_info().misses
    with ThreadPoolExecutor(4) as threads:
        every = list(threads.map(shown, [files["mastered"]] * 8))
    assert all(torch.equal(one, alone) for one in every)
    assert _mapper.cache_info().misses == made
