"""The benchmark of data beside the GPU, at a tiny size: its cache is one, and its spans add up."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from benchmarks.training_data import TINY, report, rows_of
from benchmarks.training_data_busy import Waits, covered, write_noise_cache
from tests.support.pages import check_says, result

from freqformer.training.cache.clips import CachedClips
from freqformer.training.cache.reading import LatentCache
from freqformer.training.seeding import derive_generator

CPU = torch.device("cpu")


def test_spans_that_overlap_count_once() -> None:
    assert covered([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.5, 1.6)]) == 4.0
    assert covered([(0.0, 2.0)]) == 2.0


def test_its_cache_is_read_as_any_other(tmp_path: Path) -> None:
    assert write_noise_cache(tmp_path, TINY.busy, CPU) == [2 * 2 * 3, 3 * 2 * 2]
    cache = LatentCache(tmp_path)
    assert [len(clips) for clips in cache.index.clips_by_bucket()] == [6, 6]
    for number, clip in enumerate(cache.index.clips):
        latents = cache.latents(number, derive_generator(number))
        assert tuple(latents.shape) == (4, *cache.index.latent_size(clip.bucket))
        assert tuple(cache.text(clip.text).shape)[1] == TINY.busy.text_channels
    source = CachedClips(tmp_path, 0, batch_size=1)
    assert len({tuple(source.load(index).clip.shape) for index in range(12)}) == 2


def test_waits_are_told_by_place(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    waits = Waits(2, 3, on_gpu=True)
    with warnings.catch_warnings():
        for step in range(1, 5):
            waits.after(step)
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
    assert modes == ["warn", "default"]
    (place,) = waits.by_place
    assert place.startswith("tests/benchmarks/test_training_data.py:")
    assert waits.by_place[place] == 2


@pytest.mark.slow
def test_both_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(TINY)
    results = {name: rows[name](tmp_path / name, CPU) for name in ("busy", "cache")}
    assert 0 < results["busy"]["busy"] <= 1
    assert results["cache"]["command_clips_per_s"] < results["cache"]["steady_clips_per_s"]
    assert json.loads(json.dumps(results)) == results
    report(results)
    assert "the VAE alone" in capsys.readouterr().out


def test_what_the_page_says_was_measured() -> None:
    found = result("training_data")
    cache, busy = found["cache"], found["busy"]
    shape = cache["frames_height_width"]
    assert busy["tokens"] == [65536]
    assert not any("freqformer" in place for place in busy["waits"])
    check_says(
        "docs/training.md",
        f"clips of {shape[0]} frames of {shape[1]} × {shape[2]} by Wan's VAE",
        f"at {cache['steady_of_vae']:.2f} of the rate of that VAE alone "
        f"({cache['steady_clips_per_s']:.2f} and {cache['vae_clips_per_s']:.2f} clips a second, "
        f"{cache['command_clips_per_s']:.2f} from start to end)",
        f"a cache of {busy['clips']:,} clips",
        f"busy for {busy['busy']:.1%} of a step of {1e3 * busy['median_step_s']:.0f} ms",
    )
