"""Clips from video files: which part of which file, bad files, and the memory of decoded frames."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch

from freqformer import media
from freqformer.media import VideoError, read_clip, to_unit, write_video
from freqformer.training.config import DataConfig
from freqformer.training.data import ClipFolder
from freqformer.training.loader import ClipLoader

FPS = 8
CLIP = DataConfig(num_frames=4, height=16, width=24, fps=FPS, workers=2)


def frames(number: int, length: int) -> torch.Tensor:
    """Grey frames that name their file and rise with time, and survive compression: uint8 (length, 16, 24, 3)."""
    grey = torch.tensor([20 + 4 * i for i in range(length)], dtype=torch.uint8)
    clip = grey.view(-1, 1, 1, 1).repeat(1, 16, 24, 3)
    clip[:, :, 12:] = 10 * number
    return clip


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """21 videos of 1 s, 8 frames each."""
    folder = tmp_path_factory.mktemp("videos")
    for i in range(21):
        write_video(frames(i, 8), folder / f"{i:02d}.mp4", FPS)
    return folder


@pytest.fixture
def copy(videos, tmp_path) -> Path:
    return Path(shutil.copytree(videos, tmp_path / "videos"))


def at(path: Path, **values) -> DataConfig:
    return replace(CLIP, path=str(path), **values)


def file_number(clip: torch.Tensor) -> int:
    return round(float((clip[:, :, :, 14:].mean() + 1) * 127.5) / 10)


def start_frame(clip: torch.Tensor) -> int:
    return round((float((clip[:, 0, :, :10].mean() + 1) * 127.5) - 20) / 4)


def test_an_epoch_visits_every_part_of_every_file_once(videos):
    source = ClipFolder(at(videos), seed=0)
    # 8 frames hold two clips of 4.
    for epoch in range(2):
        seen = Counter(file_number(source.load(42 * epoch + i).pixels) for i in range(42))
        assert seen == dict.fromkeys(range(21), 2)
    orders = [[file_number(source.load(start + i).pixels) for i in range(42)] for start in (0, 42)]
    assert orders[0] != orders[1]
    starts = {start_frame(source.load(i).pixels) for i in range(84)}
    assert starts == {0, 1, 2, 3, 4}


def test_clips_follow_from_seed_and_index_alone(videos):
    first, second = (ClipFolder(at(videos), seed=3) for _ in range(2))
    for i in (5, 0, 17):
        assert torch.equal(first.load(i).pixels, second.load(i).pixels)
    assert first.fingerprint() == second.fingerprint() != ClipFolder(at(videos), seed=4).fingerprint()
    assert first.load(0).pixels.shape == (3, 4, 16, 24)
    assert first.bad_files == {}


def test_decoding_once_or_every_time_gives_the_same_clips(videos, monkeypatch):
    memory, files = ClipFolder(at(videos), seed=1), ClipFolder(at(videos, cache_mib=0), seed=1)
    for i in range(12):
        assert torch.equal(memory.load(i).pixels, files.load(i).pixels)
    monkeypatch.setattr("freqformer.training.data.read_clip", None)
    memory.load(0)
    with pytest.raises(TypeError):
        files.load(0)


def test_a_single_file_and_its_own_rate(videos, tmp_path):
    path = tmp_path / "long.mp4"
    write_video(frames(5, 40), path, 16)
    for fps in (4, 16, 50):
        source = ClipFolder(at(path, fps=fps), seed=0)
        for i in range(4):
            clip = source.load(i).pixels
            begin = start_frame(clip)
            expected = to_unit(read_clip(path, start=begin / 16, num_frames=4, fps=fps, height=16, width=24))
            assert (clip - expected).abs().max() <= 8 / 127.5, "the same frames, to one frame"


def test_a_bad_file_is_named_skipped_and_replaced(copy, caplog):
    (copy / "07.mp4").write_bytes(b"no video" * 100)
    with caplog.at_level(logging.WARNING):
        source = ClipFolder(at(copy), seed=0)
    assert list(source.bad_files) == [copy / "07.mp4"]
    assert "07.mp4" in caplog.text
    assert Counter(file_number(source.load(i).pixels) for i in range(40)) == {i: 2 for i in range(21) if i != 7}


def test_a_file_that_breaks_while_training_is_replaced_alike_every_time(copy, caplog):
    # Its header says two windows, but it can't be decoded any more.
    intact = ClipFolder(at(copy, cache_mib=0), seed=0)
    whole = [intact.load(i).pixels for i in range(42)]
    (copy / "03.mp4").write_bytes(b"")
    struck = [i for i, clip in enumerate(whole) if file_number(clip) == 3]
    assert len(struck) == 2

    def take(start: int) -> tuple[torch.Tensor, list[str]]:
        caplog.clear()
        intact.bad_files.clear()
        with caplog.at_level(logging.WARNING), ClipLoader(intact, count(start), seed=0, workers=3, ahead=6) as loader:
            clips, _ = loader.take(42 - start)
        return clips, [record.getMessage() for record in caplog.records]

    clips, warnings = take(0)
    assert len(warnings) == 1, "named once"
    assert "03.mp4" in warnings[0]
    assert list(intact.bad_files) == [copy / "03.mp4"]
    for i, clip in enumerate(clips):
        assert torch.equal(clip, whole[i]) == (i not in struck)
        assert file_number(clip) != 3
    again, _ = take(struck[0])
    assert torch.equal(again, clips[struck[0] :])


def test_more_than_one_in_twenty_bad_files_stops_with_the_list(copy):
    for name in ("02.mp4", "11.mp4"):
        (copy / name).write_bytes(b"")
    with pytest.raises(VideoError, match=r"(?s)2 of 21 videos .* 5% .*02\.mp4.*11\.mp4"):
        ClipFolder(at(copy), seed=0)


def test_files_that_break_while_training_stop_it_too(copy):
    source = ClipFolder(at(copy, cache_mib=0), seed=0)
    for name in ("02.mp4", "11.mp4"):
        (copy / name).unlink()
    with (
        ClipLoader(source, count(), seed=0) as loader,
        pytest.raises(VideoError, match=r"(?s)2 of 21 videos .*(02|11)\.mp4.*(02|11)\.mp4"),
    ):
        loader.take(42)


def test_a_lone_bad_file_stops_the_run(tmp_path):
    path = tmp_path / "notes.mp4"
    path.write_text("no video")
    with pytest.raises(VideoError, match=r"1 of 1 videos .*notes\.mp4"):
        ClipFolder(at(path), seed=0)
    write_video(frames(0, 8), path, FPS)
    source = ClipFolder(at(path, cache_mib=0), seed=0)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(VideoError, match=r"16 clips in a row .*notes\.mp4"):
        source.load(0)


def test_short_files_are_left_out_and_named(copy, caplog):
    write_video(frames(1, 2), copy / "00.mp4", FPS)
    with caplog.at_level(logging.WARNING):
        source = ClipFolder(at(copy), seed=0)
    assert "00.mp4 lasts 0.250 s" in caplog.text
    assert source.bad_files == {}
    assert all(file_number(source.load(i).pixels) != 0 for i in range(40))
    with pytest.raises(VideoError, match=r"no video as long as a clip \(20 s\)"):
        ClipFolder(at(copy, num_frames=160), seed=0)


def test_nothing_there_and_no_path():
    with pytest.raises(VideoError, match="does not exist"):
        ClipFolder(at(Path("/nowhere")), seed=0)
    with pytest.raises(ValueError, match="path is None"):
        ClipFolder(CLIP, seed=0)


def test_fingerprint_differs_with_files_and_clip(copy):
    before = ClipFolder(at(copy), seed=0).fingerprint()
    assert ClipFolder(at(copy, fps=9), seed=0).fingerprint() != before
    (copy / "20.mp4").unlink()
    assert ClipFolder(at(copy), seed=0).fingerprint() != before


def test_memory_gives_way_to_single_clips_where_a_file_is_cut_short(copy, monkeypatch):
    """A file that can't be decoded as a whole may hold whole clips."""
    real = media.read_clip

    def cut(path, *, start, num_frames, fps, height, width):
        if num_frames > CLIP.num_frames and Path(path).name == "04.mp4":
            raise VideoError(f"{path} is cut short")
        return real(path, start=start, num_frames=num_frames, fps=fps, height=height, width=width)

    monkeypatch.setattr("freqformer.training.data.read_clip", cut)
    source = ClipFolder(at(copy), seed=0)
    assert source.bad_files == {}
    assert Counter(file_number(source.load(i).pixels) for i in range(42))[4] == 2
