"""What is written plays, is whole or not there, and is refused where no player would show it."""

from __future__ import annotations

from pathlib import Path

import av
import pytest
import torch
from tests.support.file_limit import file_limit
from tests.support.videos import gradient, numbered

from freqformer.media import Sound, VideoError, contact_sheet, probe_video, read_clip, write_video


@pytest.mark.parametrize(
    ("count", "height", "width"),
    [(12, 48, 80), (5, 33, 47), (1, 16, 16), (3, 2, 2), (2, 1, 1), (4, 90, 160)],
)
def test_written_video_plays(tmp_path: Path, count: int, height: int, width: int) -> None:
    frames, path = gradient(count, height, width), tmp_path / "new" / "clip.mp4"
    write_video(frames, path, 12)
    info = probe_video(path)
    assert (info.num_frames, info.height, info.width) == (
        count,
        height + height % 2,
        width + width % 2,
    )
    assert info.fps == pytest.approx(12)
    assert info.duration == pytest.approx(count / 12, rel=0.01)
    back = read_clip(path, start=0, num_frames=count, fps=12, height=info.height, width=info.width)
    if (
        height > 2
    ):  # Two pixels share their colour, so a tiny picture of many colours can't be near.
        assert (back[:, :height, :width].int() - frames.int()).abs().float().mean() < 5
    if count > 1 and height > 2:
        assert back.float().std() > 30
        assert (back[0].int() - back[-1].int()).abs().max() > 100
    assert sorted(path.parent.iterdir()) == [path]


def test_written_video_is_what_players_expect(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_video(gradient(4, 32, 32), path, 23.976)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.codec_context.colorspace, stream.codec_context.color_primaries) == (1, 1)
        assert float(stream.average_rate or 0) == pytest.approx(23.976, rel=1e-4)
    data = path.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_saturated_colours_survive(tmp_path: Path) -> None:
    colours = torch.tensor(
        [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 255, 255], [0, 0, 0]]
    )
    frames = colours.to(torch.uint8)[:, None, None].expand(-1, 32, 32, 3).contiguous()
    write_video(frames, tmp_path / "clip.mp4", 10)
    back = read_clip(tmp_path / "clip.mp4", start=0, num_frames=6, fps=10, height=32, width=32)
    assert (back.int() - frames.int()).abs().max() <= 6


@pytest.mark.parametrize("name", ["clip.mp4", "sheet.png"])
def test_failed_write_keeps_the_old_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"old")
    frames = torch.randint(0, 256, (8, 64, 64, 3), dtype=torch.uint8)
    with file_limit(2000), pytest.raises(VideoError, match=rf"{name} can't be written.*ulimit -f"):
        write_video(frames, path, 8) if name.endswith("mp4") else contact_sheet(frames, path)
    assert path.read_bytes() == b"old"
    assert sorted(tmp_path.iterdir()) == [path]


def test_unwritable_places(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(VideoError, match="can't be written"):
        write_video(gradient(2, 8, 8), tmp_path / "file" / "clip.mp4", 8)
    with pytest.raises(VideoError, match=r"clip\.avi does not end in \.mp4"):
        write_video(gradient(2, 8, 8), tmp_path / "clip.avi", 8)


def test_contact_sheet(tmp_path: Path) -> None:
    frames = numbered(5, 6, 8)
    contact_sheet(frames, tmp_path / "sheet.png", columns=3, scale=2)
    with av.open(str(tmp_path / "sheet.png")) as container:
        sheet = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert sheet.shape == (2 * 12 + 4, 3 * 16 + 2 * 4, 3)
    for index in range(5):
        top, left = 16 * (index // 3), 20 * (index % 3)
        assert (sheet[top : top + 12, left : left + 16] == 10 * index).all()
    assert (sheet[12:16] == 255).all()
    assert (sheet[16:, 40:] == 255).all()


def test_contact_sheet_chooses_columns(tmp_path: Path) -> None:
    contact_sheet(numbered(16, 10, 10), tmp_path / "sheet.png")
    info = probe_video(tmp_path / "sheet.png")
    assert (info.height, info.width) == (46, 46)


@pytest.mark.parametrize(
    "fps", [0, -1, 4e-4, 1e-3 - 1e-9, 1001, 1e5, float("nan"), float("inf"), "8", True, None]
)
def test_rates_that_no_player_shows_are_refused(tmp_path: Path, fps: object) -> None:
    """F45, F118."""
    with pytest.raises(ValueError, match=r"fps is .*; numbers from 0\.001 to 1000 are allowed"):
        write_video(gradient(2, 8, 8), tmp_path / "clip.mp4", fps)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fps", [1e-3, 0.0123, 0.5, 24000 / 1001, 29.97, 240, 1000])
def test_allowed_rates_are_kept(tmp_path: Path, fps: float) -> None:
    path = tmp_path / "clip.mp4"
    write_video(gradient(4, 16, 16), path, fps)
    info = probe_video(path)
    assert info.fps == pytest.approx(fps, rel=1e-3)
    assert info.num_frames == 4
    assert read_clip(info, start=0, num_frames=4, fps=info.fps, height=16, width=16).shape == (
        4,
        16,
        16,
        3,
    )


def test_frames_that_h264_can_not_hold_are_refused(tmp_path: Path) -> None:
    frames = torch.zeros(1, 1, 1, 3, dtype=torch.uint8).expand(1, 2, 16386, 3)
    with pytest.raises(ValueError, match="up to 16384 pixels along a side"):
        write_video(frames, tmp_path / "clip.mp4", 8)


def spoken(path: Path) -> tuple[torch.Tensor, int]:
    """The sound of a file, (channels, samples), and its rate."""
    with av.open(str(path)) as container:
        (stream,) = container.streams.audio
        pieces = [torch.from_numpy(frame.to_ndarray()) for frame in container.decode(stream)]
        return torch.cat(pieces, 1), stream.rate


@pytest.mark.parametrize(("channels", "rate"), [(1, 16000), (2, 32000)])
def test_sound_is_heard(tmp_path: Path, channels: int, rate: int) -> None:
    """A tone on each channel, longer than what is encoded at once."""
    times = torch.arange(3 * rate) / rate
    tones = torch.tensor([300.0, 700.0])[:channels, None]
    samples = 0.5 * (2 * torch.pi * tones * times).sin()
    path = tmp_path / "clip.mp4"
    write_video(gradient(24, 32, 48), path, 8, Sound(samples, rate))
    info = probe_video(path)
    assert (info.num_frames, info.duration) == (24, pytest.approx(3, rel=0.01))
    found, found_rate = spoken(path)
    assert found_rate == rate
    assert found.shape[0] == channels
    assert found.shape[1] / rate == pytest.approx(3, abs=0.15)
    for channel in range(channels):
        spectrum = torch.fft.rfft(found[channel]).abs()
        loudest = float(spectrum.argmax()) * rate / found.shape[1]
        assert loudest == pytest.approx(float(tones[channel]), abs=2)
    assert float(found.square().mean().sqrt()) == pytest.approx(0.5 / 2**0.5, rel=0.05)


def test_sound_that_no_file_can_hold_is_refused() -> None:
    cases = (
        (torch.zeros(16000), 16000, r"samples are torch.float32 \(16000,\); floats \(channels"),
        (torch.zeros(3, 16000), 16000, "one channel or two"),
        (torch.zeros(1, 0), 16000, "with a sample at least"),
        (torch.zeros(1, 9, dtype=torch.int16), 16000, "samples are torch.int16"),
        (torch.full((1, 9), torch.nan), 16000, "samples hold NaN or infinity"),
        (torch.zeros(1, 9), 160, "rate is 160 samples a second; one of 7350, .* resample"),
    )
    for samples, rate, message in cases:
        with pytest.raises(ValueError, match=message):
            Sound(samples, rate)
