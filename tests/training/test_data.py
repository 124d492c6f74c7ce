"""Clips from video files: which part of which file, bad files, and the memory of decoded frames."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import count
from pathlib import Path

import pytest
import torch
from tests.support.videos import encode, numbered, with_sound

from freqformer.media import VideoError, from_unit, opening, read_clip, to_unit, write_video
from freqformer.training.checkpoint import newest_checkpoint
from freqformer.training.config import DataConfig, RunConfig, TrainConfig
from freqformer.training.data import ClipFolder
from freqformer.training.loader import ClipLoader
from freqformer.training.loop import train
from freqformer.training.report import StepReport

FPS = 8
CLIP = DataConfig(num_frames=4, height=16, width=24, fps=FPS, workers=2)


def frames(number: int, length: int) -> torch.Tensor:
    """Grey frames that name their file and rise with time, and survive compression: uint8 (length,
    16, 24, 3)."""
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
        seen = Counter(file_number(source.load(42 * epoch + i).clip) for i in range(42))
        assert seen == dict.fromkeys(range(21), 2)
    orders = [[file_number(source.load(start + i).clip) for i in range(42)] for start in (0, 42)]
    assert orders[0] != orders[1]
    starts = {start_frame(source.load(i).clip) for i in range(84)}
    assert starts == {0, 1, 2, 3, 4}


def test_clips_follow_from_seed_and_index_alone(videos):
    first, second = (ClipFolder(at(videos), seed=3) for _ in range(2))
    for i in (5, 0, 17):
        assert torch.equal(first.load(i).clip, second.load(i).clip)
    assert (
        first.fingerprint() == second.fingerprint() != ClipFolder(at(videos), seed=4).fingerprint()
    )
    assert first.load(0).clip.shape == (3, 4, 16, 24)
    assert first.bad_files == {}


def test_decoding_once_or_every_time_gives_the_same_clips(videos, monkeypatch):
    memory, files = ClipFolder(at(videos), seed=1), ClipFolder(at(videos, cache_mib=0), seed=1)
    for i in range(12):
        assert torch.equal(memory.load(i).clip, files.load(i).clip)
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
            clip = source.load(i).clip
            begin = start_frame(clip)
            expected = to_unit(
                read_clip(path, start=begin / 16, num_frames=4, fps=fps, height=16, width=24)
            )
            assert (clip - expected).abs().max() <= 8 / 127.5, "the same frames, to one frame"


def test_a_bad_file_is_named_skipped_and_replaced(copy, caplog):
    (copy / "07.mp4").write_bytes(b"no video" * 100)
    with caplog.at_level(logging.WARNING):
        source = ClipFolder(at(copy), seed=0)
    assert list(source.bad_files) == [copy / "07.mp4"]
    assert "07.mp4" in caplog.text
    assert Counter(file_number(source.load(i).clip) for i in range(40)) == {
        i: 2 for i in range(21) if i != 7
    }


def test_a_file_that_breaks_while_training_is_replaced_alike_every_time(copy, caplog):
    # Its header says two windows, but it can't be decoded any more.
    intact = ClipFolder(at(copy, cache_mib=0), seed=0)
    whole = [intact.load(i).clip for i in range(42)]
    (copy / "03.mp4").write_bytes(b"")
    struck = [i for i, clip in enumerate(whole) if file_number(clip) == 3]
    assert len(struck) == 2

    def take(start: int) -> tuple[torch.Tensor, list[str]]:
        caplog.clear()
        intact.bad_files.clear()
        with (
            caplog.at_level(logging.WARNING),
            ClipLoader(intact, count(start), seed=0, workers=3, ahead=6) as loader,
        ):
            clips = loader.take(42 - start).clip
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


def test_bad_files_are_left_out_however_many_and_named_up_to_a_number(copy, caplog):
    for i in range(1, 21):
        (copy / f"{i:02d}.mp4").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        source = ClipFolder(at(copy), seed=0)
    assert len(source.bad_files) == 20
    assert {file_number(source.load(i).clip) for i in range(6)} == {0}
    (record,) = caplog.records
    message = record.getMessage()
    assert "20 of 21 videos" in message
    assert "10.mp4 is empty" in message
    assert "11.mp4" not in message
    assert "and 10 more" in message


def test_files_that_break_while_training_are_named_and_left_out_as_long_as_one_is_whole(
    copy, caplog
):
    source = ClipFolder(at(copy, cache_mib=0), seed=0)
    for i in range(21):
        if i != 13:
            (copy / f"{i:02d}.mp4").unlink()
    with caplog.at_level(logging.WARNING), ClipLoader(source, count(), seed=0) as loader:
        clips = loader.take(42).clip
    assert {file_number(clip) for clip in clips} == {13}
    assert len(source.bad_files) == len(caplog.records) == 20
    (copy / "13.mp4").unlink()
    with pytest.raises(
        VideoError, match=r"(?s)none of the 21 videos .*still there.*\d\d\.mp4.*and 11 more"
    ):
        source.load(0)


def test_whatever_a_file_makes_the_decoder_raise_it_is_skipped(copy, monkeypatch):
    """F112: no kind of error may end a run for one file."""
    real = opening._video_stream

    def strange(path, container):
        if path.name in errors:
            raise errors[path.name]
        return real(path, container)

    errors = {
        "03.mp4": OverflowError("too large"),
        "04.mp4": UnicodeDecodeError("utf-8", b"x", 0, 1, "no"),
        "05.mp4": MemoryError(),
        "06.mp4": RuntimeError("odd"),
    }
    whole = ClipFolder(at(copy, cache_mib=0), seed=0)
    monkeypatch.setattr(opening, "_video_stream", strange)
    assert {path.name for path in ClipFolder(at(copy), seed=0).bad_files} == set(errors)
    for i in range(42):
        whole.report(whole.load(i))
    assert {path.name for path in whole.bad_files} == set(errors)
    assert all(
        name in reason
        for name, reason in zip(sorted(errors), sorted(whole.bad_files.values()), strict=True)
    )


def test_a_lone_bad_file_stops_the_run(tmp_path):
    path = tmp_path / "notes.mp4"
    path.write_text("no video")
    with pytest.raises(
        VideoError, match=r"(?s)holds no video that can be read .*notes\.mp4 can't be read"
    ):
        ClipFolder(at(path), seed=0)
    write_video(frames(0, 8), path, FPS)
    source = ClipFolder(at(path, cache_mib=0), seed=0)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(VideoError, match=r"(?s)none of the 1 videos .*notes\.mp4"):
        source.load(0)


def test_short_files_are_left_out_and_named(copy, caplog):
    write_video(frames(1, 2), copy / "00.mp4", FPS)
    with caplog.at_level(logging.WARNING):
        source = ClipFolder(at(copy), seed=0)
    assert "00.mp4 lasts 0.250 s" in caplog.text
    assert source.bad_files == {}
    assert all(file_number(source.load(i).clip) != 0 for i in range(40))
    with pytest.raises(
        VideoError, match=r"(?s)is as long as a clip \(20 s\).*00\.mp4 lasts 0\.250 s.*and 11 more"
    ):
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


def test_a_cached_video_that_is_damaged_gives_its_whole_clips(copy):
    """F82: what is whole in a file does not depend on whether it is decoded at once."""
    path = copy / "04.mp4"
    write_video(torch.randint(0, 256, (40, 64, 96, 3), dtype=torch.uint8), path, FPS)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    path.write_bytes(data)
    sources = [ClipFolder(at(path, cache_mib=mib), seed=0) for mib in (256, 0)]
    assert all(source.bad_files == {} for source in sources)
    for i in range(20):
        cached, read = (source.load(i) for source in sources)
        assert torch.equal(cached.clip, read.clip)
        assert cached.failures == read.failures


def mean_greys(source: ClipFolder, clips: int) -> list[list[int]]:
    return [
        [round(float(f.float().mean())) for f in from_unit(source.load(i).clip)]
        for i in range(clips)
    ]


def test_variable_frame_rates_are_cached_frame_by_frame(tmp_path):
    """F82: a fast part keeps all its frames, whatever the mean rate of the file is."""
    times = [*range(0, 1000, 42), *range(1000, 10000, 1000)]
    path = encode(tmp_path / "variable.mkv", numbered(len(times), 16, 24) // 2, times=times)
    config = at(path, num_frames=8, fps=24, cache_mib=256)
    greys = [mean_greys(ClipFolder(replace(config, cache_mib=mib), seed=0), 40) for mib in (256, 0)]
    assert greys[0] == greys[1]
    assert max(len(set(clip)) for clip in greys[0]) == 8


@pytest.mark.parametrize(
    "rate", [Fraction(24000, 1001), Fraction(30000, 1001), Fraction(60000, 1001)]
)
def test_the_last_frame_is_kept_at_ntsc_rates(tmp_path, rate):
    """F83."""
    path = encode(tmp_path / "ntsc.mkv", numbered(17, 16, 24), rate=rate)
    for mib in (256, 0):
        (clip,) = mean_greys(
            ClipFolder(at(path, num_frames=17, fps=float(rate), cache_mib=mib), seed=0), 1
        )
        assert [round(grey / 10) for grey in clip] == list(range(17))


def test_sound_longer_than_the_picture_is_no_part_of_it(tmp_path):
    """F80."""
    path = with_sound(tmp_path / "long_sound.mkv", frames=24, seconds=5.0)
    source = ClipFolder(at(path, cache_mib=0), seed=0)
    assert source.num_windows == 4
    assert all(source.load(i).failures == () for i in range(12))


def test_frames_that_last_for_weeks_are_refused_and_the_others_go_on(copy, caplog):
    """F108: a file of 10 KB must not make work for minutes."""
    for name, length in (("weeks.y4m", 10_000_000), ("hours.y4m", 10_000)):
        frame = b"FRAME\n" + b"\x80" * 384
        (copy / name).write_bytes(
            f"YUV4MPEG2 W16 H16 F1:{length} Ip A1:1 C420jpeg\n".encode() + frame * 24
        )
    source = ClipFolder(at(copy), seed=0)
    assert [path.name for path in source.bad_files] == ["weeks.y4m"]
    assert "2.4e+08 s" in source.bad_files[copy / "weeks.y4m"]
    assert source.num_windows == 42 + 24, "no more windows than frames"
    assert all(source.load(i).failures == () for i in range(66))


def test_videos_that_go_bad_end_a_run_with_a_checkpoint_and_it_goes_on(copy, tmp_path, caplog):
    """F115: one of them is replaced; without any, what is learned is kept."""
    config = TrainConfig(
        str(tmp_path / "out"),
        model={
            "num_layers": 1,
            "num_attention_heads": 3,
            "attention_head_dim": 8,
            "patch_size": [1, 4, 4],
        },
        data=at(copy, cache_mib=0),
        run=RunConfig(max_steps=8, batch_size=1, device="cpu", progress=False),
    )
    away = copy.with_name("away")

    def unmount(report: StepReport) -> None:
        if report.step == 2:
            copy.rename(away)

    with pytest.raises(VideoError, match=r"none of the 21 videos .*still there"):
        train(config, on_step=unmount)
    newest = newest_checkpoint(tmp_path / "out" / "checkpoints")
    assert newest is not None
    step = int(newest.name.removeprefix("step-"))
    assert 2 <= step < 8
    away.rename(copy)
    (copy / "05.mp4").write_bytes(b"")
    steps: list[int] = []
    train(config, on_step=lambda report: steps.append(report.step))
    assert steps == list(range(step + 1, 9))
    assert "05.mp4 is empty" in caplog.text
