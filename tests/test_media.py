"""Video files: what is written plays, clips are taken by time, and every broken file is named."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from tests.support.file_limit import file_limit

from freqformer import media
from freqformer.media import VideoError, contact_sheet, from_unit, list_videos, probe_video, read_clip, to_unit, write_video


def gradient(frames: int, height: int, width: int) -> torch.Tensor:
    """Smooth frames that differ: uint8 (F, H, W, 3)."""
    f, y, x = torch.meshgrid(torch.arange(frames), torch.arange(height), torch.arange(width), indexing="ij")
    channels = [255 * x / width, 255 * y / height, 255 * f / max(frames - 1, 1)]
    return torch.stack(channels, -1).to(torch.uint8)


def numbered(frames: int, height: int = 32, width: int = 48) -> torch.Tensor:
    """Grey frames; frame i has the value 10 * i, which survives compression."""
    return (10 * torch.arange(frames)).to(torch.uint8)[:, None, None, None].expand(-1, height, width, 3).contiguous()


def numbers(clip: torch.Tensor) -> list[int]:
    return (clip.float().mean((1, 2, 3)) / 10).round().int().tolist()


def encode(path: Path, frames: torch.Tensor, times: list[int] | None = None, **options) -> Path:
    """Write a file by hand, with given time stamps in 1/1000 s or features that `write_video` has no use for."""
    codec, rotation, aspect, rate = (options.get(k) for k in ("codec", "rotation", "aspect", "rate"))
    with av.open(str(path), "w", format=options.get("format")) as container:
        stream = container.add_stream(codec or "libx264", rate=rate or 10)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        if codec is None:
            stream.options = {"crf": "10", "g": "5"}
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture.numpy(), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("count", "height", "width"), [(12, 48, 80), (5, 33, 47), (1, 16, 16), (3, 2, 2), (2, 1, 1), (4, 90, 160)]
)
def test_written_video_plays(tmp_path: Path, count: int, height: int, width: int) -> None:
    frames, path = gradient(count, height, width), tmp_path / "new" / "clip.mp4"
    write_video(frames, path, 12)
    info = probe_video(path)
    assert (info.num_frames, info.height, info.width) == (count, height + height % 2, width + width % 2)
    assert info.fps == pytest.approx(12)
    assert info.duration == pytest.approx(count / 12, rel=0.01)
    back = read_clip(path, start=0, num_frames=count, fps=12, height=info.height, width=info.width)
    if height > 2:  # Two pixels share their colour, so a tiny picture of many colours can't be near.
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
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 255, 255], [0, 0, 0]])
    frames = colours.to(torch.uint8)[:, None, None].expand(-1, 32, 32, 3).contiguous()
    write_video(frames, tmp_path / "clip.mp4", 10)
    back = read_clip(tmp_path / "clip.mp4", start=0, num_frames=6, fps=10, height=32, width=32)
    assert (back.int() - frames.int()).abs().max() <= 6


@pytest.mark.parametrize(
    ("start", "fps", "expected"),
    [
        (0, 10, [0, 1, 2, 3]),
        (0.4, 10, [4, 5, 6, 7]),
        (1.6, 10, [16, 17, 18, 19]),
        (0, 5, [0, 2, 4, 6]),
        (0.94, 10, [9, 10, 11, 12]),
        (0.96, 10, [10, 11, 12, 13]),
        (0.51, 20, [5, 6, 6, 7]),
        (1.99, 1000, [19, 19, 19, 19]),
    ],
)
def test_frames_nearest_in_time(tmp_path: Path, start: float, fps: float, expected: list[int]) -> None:
    path = encode(tmp_path / "clip.mp4", numbered(20))
    assert numbers(read_clip(path, start=start, num_frames=4, fps=fps, height=32, width=48)) == expected


def test_variable_frame_rate(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mkv", numbered(6), times=[0, 100, 150, 1000, 1050, 2000])
    assert numbers(read_clip(path, start=0, num_frames=5, fps=2.5, height=32, width=48)) == [0, 2, 3, 4, 5]


def test_first_time_stamp_is_the_start(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mkv", numbered(6), times=[5000 + 100 * i for i in range(6)])
    assert numbers(read_clip(path, start=0.2, num_frames=3, fps=10, height=32, width=48)) == [2, 3, 4]


@pytest.mark.parametrize(("name", "options"), [("clip.h264", {"format": "h264"}), ("clip.avi", {"codec": "mpeg4"})])
@pytest.mark.parametrize("start", [0.0, 0.24])
def test_other_formats(tmp_path: Path, name: str, options: dict, start: float) -> None:
    path = encode(tmp_path / name, numbered(10), rate=25, **options)
    assert probe_video(path).num_frames == 10
    first = round(start * 25)
    assert numbers(read_clip(path, start=start, num_frames=3, fps=25, height=32, width=48)) == [first, first + 1, first + 2]


def test_clip_past_the_end_is_refused(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", numbered(20))
    assert read_clip(path, start=0, num_frames=20, fps=10, height=8, width=8).shape == (20, 8, 8, 3)
    for start, count, fps in ((0, 21, 10), (1.5, 6, 10), (30, 1, 10), (0, 20, 9)):
        with pytest.raises(VideoError, match=r"clip\.mp4 has frames up to 2\.000 s.*start earlier"):
            read_clip(path, start=start, num_frames=count, fps=fps, height=8, width=8)


def test_resized_to_cover_and_centred(tmp_path: Path) -> None:
    frames = torch.zeros(1, 60, 120, 3, dtype=torch.uint8)
    frames[:, 20:40, 50:70] = 255
    path = encode(tmp_path / "clip.mp4", frames)
    square = read_clip(path, start=0, num_frames=1, fps=1, height=30, width=30)[0].float().mean(-1)
    assert square[11:19, 11:19].min() > 200
    assert square[:8].max() < 40
    assert square[:, :8].max() < 40
    wide = read_clip(path, start=0, num_frames=1, fps=1, height=30, width=120)[0].float().mean(-1)
    assert wide[8:22, 53:67].min() > 200
    assert wide[:, :45].max() < 40


def test_rotation_of_the_file_is_applied(tmp_path: Path) -> None:
    frames = torch.zeros(2, 32, 64, 3, dtype=torch.uint8)
    frames[:, :, 32:] = 255
    path = encode(tmp_path / "clip.mp4", frames, rotation=90)
    info = probe_video(path)
    assert (info.height, info.width) == (64, 32)
    shown = read_clip(path, start=0, num_frames=1, fps=1, height=64, width=32)[0].float().mean(-1)
    # A quarter turn counterclockwise brings the right half to the top.
    assert shown[:28].min() > 200
    assert shown[36:].max() < 50


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", gradient(2, 32, 32), aspect=Fraction(2, 1))
    info = probe_video(path)
    assert (info.height, info.width) == (32, 64)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "no.mp4", r"no\.mp4 does not exist"), (tmp_path, "is a folder")):
        for action in (probe_video, lambda p: read_clip(p, start=0, num_frames=1, fps=1, height=2, width=2)):
            with pytest.raises(VideoError, match=message):
                action(path)


def test_files_that_are_no_video(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video at all, " * 500)
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(100_000))
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    messages = {"empty": "is empty", "text": "can't be read", "noise": "can't be read", "sound": "has no video stream"}
    for name, message in messages.items():
        path = tmp_path / f"{name}.mp4"
        with pytest.raises(VideoError, match=rf"{name}\.mp4 {message}"):
            probe_video(path)
        with pytest.raises(VideoError, match=rf"{name}\.mp4 {message}"):
            read_clip(path, start=0, num_frames=1, fps=1, height=8, width=8)


def test_video_without_frames(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mkv", numbered(10))
    data = path.read_bytes()
    # The first cluster's identifier: everything before it is header alone.
    path.write_bytes(data[: data.index(b"\x1f\x43\xb6\x75")])
    with pytest.raises(VideoError, match=r"clip\.mkv"):
        probe_video(path)


def test_file_cut_short(tmp_path: Path) -> None:
    whole = tmp_path / "whole.mp4"
    write_video(torch.randint(0, 256, (30, 64, 96, 3), dtype=torch.uint8), whole, 10)
    data, path = whole.read_bytes(), tmp_path / "cut.mp4"
    path.write_bytes(data[: len(data) // 2])
    # The index in front still claims three seconds, so the clip itself must fail.
    assert probe_video(path).num_frames == 30
    with pytest.raises(VideoError, match=r"cut\.mp4"):
        read_clip(path, start=0, num_frames=30, fps=10, height=32, width=48)
    with pytest.raises(VideoError, match=r"cut\.mp4"):
        read_clip(path, start=2.5, num_frames=4, fps=10, height=32, width=48)
    assert read_clip(path, start=0, num_frames=5, fps=10, height=32, width=48).shape == (5, 32, 48, 3)
    path.write_bytes(data[:100])
    with pytest.raises(VideoError, match=r"cut\.mp4"):
        probe_video(path)


def test_listing(tmp_path: Path) -> None:
    for name in ("b.mp4", "a.MKV", "deep/er/c.webm", "notes.txt", ".hidden.mp4", ".cache/d.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list_videos(tmp_path) == [tmp_path / name for name in ("a.MKV", "b.mp4", "deep/er/c.webm")]
    assert list_videos(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]
    with pytest.raises(VideoError, match="does not exist"):
        list_videos(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoError, match=r"empty holds no video.*mp4"):
        list_videos(tmp_path / "empty")


@pytest.mark.parametrize("name", ["clip.mp4", "sheet.png"])
def test_failed_write_keeps_the_old_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"old")
    frames = torch.randint(0, 256, (8, 64, 64, 3), dtype=torch.uint8)
    with file_limit(2000), pytest.raises(VideoError, match=rf"{name} can't be written.*free space"):
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


def test_unit_range_round_trip() -> None:
    frames = torch.arange(256, dtype=torch.uint8).reshape(4, 8, 8, 1).expand(-1, -1, -1, 3)
    clip = to_unit(frames)
    assert clip.shape == (3, 4, 8, 8)
    assert (clip.min(), clip.max()) == (-1, 1)
    assert torch.equal(from_unit(clip), frames)
    assert torch.equal(from_unit(clip.to(torch.bfloat16) * 3), from_unit((clip.to(torch.bfloat16) * 3).clamp(-1, 1)))


def test_wrong_tensors_are_refused(tmp_path: Path) -> None:
    wrong = [
        torch.zeros(2, 8, 8, 3),
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        torch.zeros(0, 8, 8, 3, dtype=torch.uint8),
    ]
    for frames in wrong:
        for action in (
            to_unit,
            lambda f: write_video(f, tmp_path / "x.mp4", 8),
            lambda f: contact_sheet(f, tmp_path / "x.png"),
        ):
            with pytest.raises(ValueError, match="frames is"):
                action(frames)
    for clip in (torch.zeros(2, 4, 8, 8), torch.zeros(3, 4, 8), torch.zeros(3, 4, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="clip is"):
            from_unit(clip)
    with pytest.raises(ValueError, match="clip holds NaN"):
        from_unit(torch.full((3, 1, 2, 2), float("nan")))


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", numbered(4))
    good = {"start": 0.0, "num_frames": 2, "fps": 10.0, "height": 8, "width": 8}
    bad = {
        "start": [-1.0, float("nan"), float("inf")],
        "fps": [0.0, float("nan")],
        "num_frames": [0, 1.5],
        "height": [0, True],
    }
    for name, values in bad.items():
        for value in values:
            with pytest.raises(ValueError, match=name):
                read_clip(path, **{**good, name: value})
    with pytest.raises(ValueError, match="fps"):
        write_video(gradient(2, 8, 8), tmp_path / "x.mp4", 0)
    with pytest.raises(ValueError, match="columns"):
        contact_sheet(gradient(2, 8, 8), tmp_path / "x.png", columns=0)


def test_shipped_clip_is_a_real_video() -> None:
    path = Path(media.__file__).parent / "assets" / "pagoda.mp4"
    assert path.stat().st_size <= 1_000_000
    info = probe_video(path)
    assert (info.height, info.width, info.num_frames) == (216, 384, 120)
    clip = read_clip(path, start=0, num_frames=5, fps=1, height=54, width=96).float()
    assert clip.std() > 40
    assert (clip[1:] - clip[:-1]).abs().mean() > 8
