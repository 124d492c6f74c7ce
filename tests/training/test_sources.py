"""Clips that the caller gives: what is taken, in which order, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.support.tiny_training import MODEL, changed, losses, tiny_config
from torch.utils.data import Dataset, TensorDataset

from freqformer.models.transformer import FreqFormerTransformer3DModel
from freqformer.training.config import DataConfig, TrainConfig
from freqformer.training.loader import ClipLoader
from freqformer.training.sources import DatasetClips, IterableClips, clip_source, given_source
from freqformer.training.synthetic import SyntheticClips

SHAPE = (3, 2, 8, 16)
CONFIG = DataConfig(num_frames=2, height=8, width=16)


class Numbered(Dataset):
    """Clips that hold their number."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full(SHAPE, index / self.count)


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return tiny_config(tmp_path / "out")


def numbers(source, indices: range) -> list[float]:
    return [float(source.load(index).clip.mean()) for index in indices]


def test_an_epoch_of_a_dataset_shows_each_clip_once_in_an_order_of_its_own():
    source = given_source(Numbered(8), CONFIG, 0, 3)
    first, second = numbers(source, range(8)), numbers(source, range(8, 16))
    assert sorted(first) == sorted(second) == [index / 8 for index in range(8)]
    assert first != second
    # By number alone, so that a resumed run goes on with the same.
    assert numbers(given_source(Numbered(8), CONFIG, 0, 3), range(8, 16)) == second
    assert numbers(given_source(Numbered(8), CONFIG, 1, 3), range(8)) != first
    prints = {
        given_source(Numbered(size), CONFIG, seed, 3).fingerprint()
        for size, seed in ((8, 0), (8, 1), (9, 0))
    }
    assert len(prints) == 3


def test_an_iterable_is_taken_in_its_order_again_and_again():
    clips = [Numbered(4)[index] for index in range(4)]

    class Stream:
        def __iter__(self):
            return iter(clips)

    source = given_source(Stream(), CONFIG, 0, 3)
    assert isinstance(source, IterableClips)
    with ClipLoader(source, iter(range(10**6)), seed=0, workers=1) as loader:
        taken = loader.take(6).clip.mean((1, 2, 3, 4))
    assert taken.tolist() == [0, 0.25, 0.5, 0.75, 0, 0.25]
    # A resumed run passes over what was seen.
    assert numbers(given_source(Stream(), CONFIG, 0, 3), range(6, 8)) == [0.5, 0.75]


@pytest.mark.parametrize("kind", ["dataset", "stream"])
def test_a_run_on_given_clips_goes_on_where_it_stopped(config, kind, tmp_path):
    clips = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def given() -> object:
        return (
            TensorDataset(clips)
            if kind == "dataset"
            else (clip for _ in range(9) for clip in clips)
        )

    straight = losses(config, clips=given())
    stopped = tiny_config(tmp_path / "stopped")
    first = losses(changed(stopped, "run", max_steps=2), clips=given())
    # The cosine is that of the whole run, so only the first loss of all is the same; data and noise
    # follow.
    rest = losses(stopped, clips=given())
    assert [step for step, _ in first + rest] == [1, 2, 3]
    assert first[0] == straight[0]
    assert len({loss for _, loss in straight}) == 3


def test_latents_of_a_models_own_channels_train(config):
    latent = torch.randn(6, 4, 2, 8, 16)
    own = FreqFormerTransformer3DModel(**{**MODEL, "in_channels": 4})
    assert len(losses(config, model=own, clips=list(latent))) == 3
    with pytest.raises(
        ValueError, match=r"model has in_channels=4 and the clips 3 channels; .*clips="
    ):
        losses(config, model=own)


def test_a_source_of_clips_is_taken_as_it_is():
    source = SyntheticClips(0, num_frames=2, height=8, width=16)
    assert given_source(source, CONFIG, 0, 3) is source
    assert isinstance(clip_source(CONFIG, 0), SyntheticClips)


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        ("videos/", r"clips is a str; a dataset"),
        ({"a": torch.zeros(SHAPE)}, r"clips is a dict; a dataset"),
        (3, r"clips is a int; a dataset"),
        ([], r"clips is empty"),
        (iter([]), r"clips ended after 0"),
        (
            [torch.zeros(2, 3, 8, 16)],
            r"torch.float32 \(2, 3, 8, 16\) as number 0; .*\(3, 2, 8, 16\) is allowed",
        ),
        ([torch.zeros(SHAPE, dtype=torch.uint8)], r"clips has torch.uint8"),
        ([torch.full(SHAPE, 255.0)], r"values up to 255 .*\[-1, 1\]"),
        ([torch.full(SHAPE, float("nan"))], r"values up to nan"),
        ([(torch.zeros(SHAPE), 3)], r"clips has tuple as number 0"),
        ([None], r"clips has NoneType as number 0"),
    ],
)
def test_other_clips_are_refused(config, clips, message):
    with pytest.raises(ValueError, match=message):
        losses(config, clips=clips)


def test_one_source_at_a_time():
    with pytest.raises(ValueError, match=r"clips are given, and data has path='videos/'"):
        given_source([torch.zeros(SHAPE)], DataConfig(path="videos/"), 0, 3)
    assert isinstance(given_source([torch.zeros(SHAPE)], CONFIG, 0, 3), DatasetClips)
