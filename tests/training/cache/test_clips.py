"""The sequence of a cache's clips: buckets, epochs, captions, and what can't be read."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from freqformer.training.cache import reading
from freqformer.training.cache.clips import CachedClips
from freqformer.training.cache.index import CacheIndex
from freqformer.training.loader import ClipLoader


def clips(made: Path, **options) -> CachedClips:
    return CachedClips(made / "cache", 0, **{"batch_size": 1, **options})


def wide(index: CacheIndex) -> set[str]:
    """The clips of the bucket with three of them."""
    (numbers,) = (numbers for numbers in index.clips_by_bucket() if len(numbers) == 3)
    return {str(index.clips[number]) for number in numbers}


def test_an_epoch_shows_every_clip_once(made: Path) -> None:
    source = clips(made)
    epochs = [[source.describe(5 * epoch + place) for place in range(5)] for epoch in range(4)]
    assert all(Counter(names) == Counter(map(str, source.cache.index.clips)) for names in epochs)
    assert len({tuple(names) for names in epochs}) > 1
    other = CachedClips(made / "cache", 1, batch_size=1)
    assert [other.describe(index) for index in range(20)] != [n for names in epochs for n in names]


def test_a_forward_pass_takes_one_bucket(made: Path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        source = clips(made, batch_size=2)
    assert caplog.text.count("left out: bucket") == 2
    assert "has 1 clips, and a forward pass takes 2; lower run.batch_size" in caplog.text
    names = [source.describe(index) for index in range(12)]
    # Two epochs of three clips are three blocks of two; the clip that is left comes next.
    assert set(names) == wide(source.cache.index)
    assert all(Counter(names[6 * k : 6 * k + 6]) == dict.fromkeys(set(names), 2) for k in (0, 1))
    assert source.sizes == [(2, 4, 6)]


def test_positions_follow_from_the_number_alone(made: Path) -> None:
    source = clips(made)
    ahead = [source.describe(index) for index in range(30)]
    fresh = clips(made)
    assert [fresh.describe(index) for index in reversed(range(30))] == ahead[::-1]


def test_samples_are_drawn_anew(made: Path) -> None:
    source = clips(made)
    by_name: dict[str, list[torch.Tensor]] = {}
    for index in range(10):
        by_name.setdefault(source.describe(index), []).append(source.load(index).clip)
    for first, second in by_name.values():
        assert not torch.equal(first, second)
    again = clips(made).load(3)
    assert torch.equal(again.clip, source.load(3).clip)


def test_captions_are_left_out_as_often_as_asked(made: Path) -> None:
    never = clips(made, caption_dropout=0)
    always = clips(made, caption_dropout=1)
    some = clips(made, caption_dropout=0.3)
    empty = never.cache.text(0)
    dropped = 0
    for index in range(200):
        sample = some.load(index)
        embeds, mask = sample.prompt_embeds, sample.prompt_attention_mask
        assert embeds is not None
        assert mask is not None
        assert embeds.shape == (6, 16)
        assert not embeds[~mask].any()
        full = never.load(index).prompt_embeds
        none = always.load(index).prompt_embeds
        assert none is not None
        torch.testing.assert_close(none[:1], empty)
        assert torch.equal(embeds, full) or torch.equal(embeds, none)
        dropped += torch.equal(embeds, none)
    assert 0.2 < dropped / 200 < 0.4


def test_a_loader_makes_batches(made: Path) -> None:
    source = clips(made, batch_size=2)
    with ClipLoader(source, iter(range(100)), seed=0) as loader:
        batch = loader.take(2)
    assert batch.clip.shape == (2, 4, 2, 4, 6)
    assert batch.prompt_embeds is not None
    assert batch.prompt_embeds.shape == (2, 6, 16)


def test_clips_that_are_held_out_never_come(made: Path) -> None:
    source = clips(made, held_out=2)
    held = {str(source.cache.index.clips[number]) for number in source.held_out}
    assert len(held) == 2
    assert not held & {source.describe(index) for index in range(30)}
    assert source.fingerprint() != clips(made).fingerprint()
    with pytest.raises(ValueError, match="held_out is 5 and the cache has 5 clips; fewer"):
        clips(made, held_out=5)


def test_no_bucket_with_enough_clips(made: Path) -> None:
    with pytest.raises(ValueError, match=r"has no bucket with run.batch_size=4 clips .*: 3.*lower"):
        clips(made, batch_size=4)


def test_what_can_not_be_read_is_named(copied: Path, monkeypatch) -> None:
    source = clips(copied)
    index = source.cache.index
    path = copied / "cache" / index.clips[0].shard
    tensors = load_file(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    victim = next(k for k in range(5) if source.describe(k) == str(index.clips[0]))
    with pytest.raises(ValueError, match=r"still.png can't be read from the cache.*checksum"):
        source.load(victim)
    save_file({name: one * float("nan") for name, one in tensors.items()}, path)
    monkeypatch.setattr(reading, "read_tensors", lambda p, names, crc: [load_file(p)[names[0]]] * 2)
    with pytest.raises(ValueError, match=r"still.png has latents that are not finite in .*remove"):
        source.load(victim)
    path.unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of its files, like \['latents-000-00000"):
        clips(copied)
