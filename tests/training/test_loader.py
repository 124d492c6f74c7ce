"""The background loader: order, repeatable noise, errors in their place."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from threading import Event, get_ident

import pytest
import torch

from freqformer.training.loader import (
    ClipLoader,
    ClipSource,
    OnDeviceLoader,
    ProceduralClips,
)
from freqformer.training.samples import BadFile, TrainingSample


class Numbered(ClipSource):
    """Clip `index` is filled with its index."""

    def __init__(self):
        self.reported = []
        self.threads = set()

    def load(self, index: int) -> TrainingSample:
        self.threads.add(get_ident())
        failures = (BadFile(Path(f"{index}.mp4"), "broken"),) if index % 3 == 2 else ()
        return TrainingSample(torch.full((3, 1, 2, 2), float(index)), failures=failures)

    def report(self, clip: TrainingSample) -> None:
        self.reported.append((int(clip.clip[0, 0, 0, 0]), len(clip.failures)))

    def fingerprint(self) -> str:
        return "numbered"


class Backwards(Numbered):
    """Even clips wait until the odd clip behind them is there, so loading never ends in order."""

    def __init__(self, clips: int):
        super().__init__()
        self.done = [Event() for _ in range(clips)]

    def load(self, index: int) -> TrainingSample:
        if index < len(self.done):
            if index % 2 == 0:
                assert self.done[index + 1].wait(30)
            self.done[index].set()
        return super().load(index)


def numbers(clips: torch.Tensor) -> list[int]:
    return clips[:, 0, 0, 0, 0].int().tolist()


def test_order_holds_whatever_ends_first():
    source = Backwards(12)
    with ClipLoader(source, count(), seed=0, workers=2, ahead=4) as loader:
        taken = [numbers(loader.take(3).clip) for _ in range(4)]
    assert taken == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert source.reported == [(i, int(i % 3 == 2)) for i in range(12)]


def test_clips_and_noise_go_on_from_any_place():
    def take(start, workers, ahead):
        with ClipLoader(Numbered(), count(start), seed=7, workers=workers, ahead=ahead) as loader:
            return loader.take(2), loader.take(1)

    whole = take(0, 3, 5)
    later = take(2, 1, 1)
    assert torch.equal(whole[1].clip, later[0].clip[:1])
    assert torch.equal(whole[1].noise, later[0].noise[:1])
    clips, noise = whole[0].clip, whole[0].noise
    assert clips.shape == noise.shape == (2, 3, 1, 2, 2)
    assert not torch.equal(noise[0], noise[1])


def test_loading_is_in_the_background():
    source = Numbered()
    with ClipLoader(source, count(), seed=0, workers=2, ahead=4) as loader:
        loader.take(4)
    assert get_ident() not in source.threads


def test_an_error_comes_when_its_clip_is_due():
    class Failing(Numbered):
        def load(self, index: int) -> TrainingSample:
            if index == 2:
                raise ValueError("clip 2 is broken")
            return super().load(index)

    with ClipLoader(Failing(), count(), seed=0, workers=2, ahead=8) as loader:
        assert numbers(loader.take(2).clip) == [0, 1]
        with pytest.raises(ValueError, match="clip 2"):
            loader.take(1)


class Counted(ProceduralClips):
    """Clips filled with their numbers."""

    def draw(self, indices: Sequence[int], device: torch.device) -> torch.Tensor:
        return (
            torch.tensor(indices, dtype=torch.float32, device=device)
            .view(-1, 1, 1, 1, 1)
            .expand(-1, 3, 2, 4, 5)
        )

    def fingerprint(self) -> str:
        return "counted"


def test_drawn_clips_come_in_order_with_noise_that_their_number_decides() -> None:
    def loader(start: int, seed: int = 7) -> OnDeviceLoader:
        return OnDeviceLoader(Counted(), count(start), seed=seed, device=torch.device("cpu"))

    with loader(0) as drawing:
        batches = [drawing.take(2) for _ in range(3)]
    assert numbers(torch.cat([batch.clip for batch in batches])) == [0, 1, 2, 3, 4, 5]
    values = torch.cat([batch.noise for batch in batches])
    assert torch.equal(loader(2).take(4).noise, values[2:])
    assert not torch.equal(loader(0, seed=8).take(2).noise, values[:2])
    assert len(values.unique()) == values.numel()
    assert abs(float(values.mean())) < 0.15
    assert abs(float(values.std()) - 1) < 0.15
    assert torch.equal(Counted().load(3).clip, torch.full((3, 2, 4, 5), 3.0))
