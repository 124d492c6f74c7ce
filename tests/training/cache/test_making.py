"""Making a cache: what it holds, going on, adding files, and what is refused or left out."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from tests.support.tiny_cache import CAPTIONS, FPS, cache_config, noise_video
from tests.support.tiny_encoders import ENCODER_CHANNELS, save_encoders, tiny_vae

from freqformer._files import sealed
from freqformer.media import read_clip, to_unit
from freqformer.models.latents import encode
from freqformer.models.text import TextFolders, TextModel
from freqformer.training.cache.index import CacheIndex
from freqformer.training.cache.making import make_cache
from freqformer.training.cache.reading import LatentCache
from freqformer.training.cache.vae import sampled


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a cache but locks and marks."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def test_a_cache_holds_what_the_encoders_make(made: Path) -> None:
    cache = LatentCache(made / "cache")
    index = cache.index
    assert (index.channels, index.compression, index.text_channels) == (4, (4, 8), ENCODER_CHANNELS)
    sizes = {bucket.size for bucket in index.buckets}
    assert {(5, 32, 48), (1, 32, 48), (5, 48, 32)} == sizes
    files = [(clip.file, clip.start) for clip in index.clips]
    # 11 frames hold two clips of 5.
    assert sorted(files) == [
        ("inner/tall.mp4", 0.0),
        ("one.mp4", 0.0),
        ("one.mp4", 5 / FPS),
        ("still.png", 0.0),
        ("two.mp4", 0.0),
    ]
    assert not index.skipped
    number = files.index(("one.mp4", 5 / FPS))
    size = {"num_frames": 5, "fps": FPS, "height": 32, "width": 48}
    frames = read_clip(made / "videos" / "one.mp4", start=5 / FPS, **size)
    posterior = encode(to_unit(frames)[None], tiny_vae())
    drawn = cache.latents(number, torch.Generator().manual_seed(7))
    expected = sampled(posterior.mean[0], posterior.logvar[0], torch.Generator().manual_seed(7))
    # Latents are kept in float16.
    torch.testing.assert_close(drawn, expected, atol=2e-3, rtol=2e-3)
    text = cache.text(index.clips[number].text)
    model = TextModel.load(TextFolders.find(made / "encoders"))
    wanted = model.encode(CAPTIONS["one.mp4"], 512)
    assert text.shape == wanted.shape
    torch.testing.assert_close(text, wanted, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(cache.text(0), model.encode("", 512), atol=1e-2, rtol=1e-2)
    assert index.text_length == 6


def test_a_cache_carries_its_encoders(made: Path) -> None:
    cache = LatentCache(made / "cache")
    assert cache.text_folders is not None
    TextModel.load(cache.text_folders)
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        kept = (cache.vae_folder / name).read_bytes()
        assert kept == (made / "encoders" / "vae" / name).read_bytes()


@pytest.mark.parametrize("latents", ["sample", "mean"])
def test_samples_and_means(latents: str, copied: Path) -> None:
    config = cache_config(copied, latents=latents, output=str(copied / "other"))
    make_cache(config)
    kept = LatentCache(copied / "other")
    both = LatentCache(copied / "cache")
    first, second = (kept.latents(1, torch.Generator().manual_seed(k)) for k in (0, 1))
    assert torch.equal(first, second)
    spread = torch.stack([both.latents(1, torch.Generator().manual_seed(k)) for k in range(200)])
    deviation = ((first - spread.mean(0)) / spread.std(0)).square().mean().sqrt()
    assert deviation < 0.2 if latents == "mean" else 0.7 < deviation < 1.4


def test_the_same_command_again_changes_nothing(copied: Path, monkeypatch) -> None:
    before = contents(copied / "cache")
    monkeypatch.setattr("freqformer.training.cache.filling.Filler.fill_latents", None)
    monkeypatch.setattr("freqformer.training.cache.filling.Filler.fill_texts", None)
    make_cache(cache_config(copied))
    assert contents(copied / "cache") == before


def test_lost_and_damaged_shards_are_made_again(copied: Path) -> None:
    before = contents(copied / "cache")
    (copied / "cache" / "latents-000-00000.safetensors").unlink()
    (copied / "cache" / "text-000-00000.safetensors").write_bytes(b"damaged")
    (copied / "cache" / "index.json").unlink()
    with pytest.raises(ValueError, match="is not done: it has no index"):
        LatentCache(copied / "cache")
    make_cache(cache_config(copied))
    assert contents(copied / "cache") == before


def test_new_files_make_another_part(copied: Path) -> None:
    before = contents(copied / "cache")
    noise_video(copied / "videos" / "new.mp4", 5, 32, 48, seed=9)
    (copied / "videos" / "new.txt").write_text("a blue ball")
    index = make_cache(cache_config(copied))
    after = contents(copied / "cache")
    assert index.clips[-1].shard == "latents-001-00000.safetensors"
    # Its caption is known already.
    assert [name for name in after if name not in before] == ["latents-001-00000.safetensors"]
    assert all(after[name] == before[name] for name in before if name.endswith(".safetensors"))
    assert len(LatentCache(copied / "cache").index.clips) == 6


def test_damaged_files_are_named_and_left_out(copied: Path, caplog) -> None:
    (copied / "videos" / "bad.mp4").write_bytes(b"no video")
    (copied / "videos" / "bad.png").write_bytes(b"no picture")
    noise_video(copied / "videos" / "short.mp4", 2, 32, 48)
    for name in ("bad", "short"):
        (copied / "videos" / f"{name}.txt").write_text("a ball")
    with caplog.at_level(logging.WARNING):
        index = make_cache(cache_config(copied))
    assert len(index.clips) == 5
    reasons = {one.file: one.reason for one in index.skipped}
    assert reasons.keys() == {"bad.mp4", "bad.png", "short.mp4"}
    assert "can't be read as a picture" in reasons["bad.png"]
    assert "lasts 0.250 s, and the shortest clip takes more than 0.500 s" in reasons["short.mp4"]
    assert all(reason in caplog.text for reason in reasons.values())
    # A repaired file is taken in, and no longer named.
    noise_video(copied / "videos" / "bad.mp4", 5, 32, 48)
    index = make_cache(cache_config(copied))
    assert len(index.clips) == 6
    assert {one.file for one in index.skipped} == {"bad.png", "short.mp4"}


def test_a_file_that_goes_bad_later_is_named_in_its_shard(copied: Path, monkeypatch) -> None:
    path = copied / "videos" / "two.mp4"
    from freqformer.training.cache import filling

    original = filling.read_clip

    def read(info, **clip):
        if info.path == path:
            raise filling.VideoError(f"{path} is damaged from 0 s to 1 s")
        return original(info, **clip)

    monkeypatch.setattr(filling, "read_clip", read)
    index = make_cache(cache_config(copied, output=str(copied / "other")))
    assert [(one.file, one.reason) for one in index.skipped] == [
        ("two.mp4", f"{path} is damaged from 0 s to 1 s")
    ]
    assert len(index.clips) == 4
    LatentCache(copied / "other").latents(3, torch.Generator())


def test_latents_that_are_not_finite_are_left_out(copied: Path, monkeypatch) -> None:
    from freqformer.training.cache import vae

    original = vae.encode

    def broken(video, model):
        posterior = original(video, model)
        return posterior._replace(mean=posterior.mean * (1 if video.shape[2] > 1 else torch.nan))

    monkeypatch.setattr(vae, "encode", broken)
    index = make_cache(cache_config(copied, output=str(copied / "other")))
    (one,) = index.skipped
    assert one.file == "still.png"
    assert "latents' mean is not finite: compute in fp32" in one.reason


def test_another_vae_or_encoder_is_refused(copied: Path) -> None:
    before = contents(copied / "cache")
    save_encoders(copied / "others", seed=1)
    for field in ("vae", "text_encoder"):
        with pytest.raises(ValueError, match=rf"is a cache made otherwise: {field} was '\w+' and"):
            make_cache(cache_config(copied, **{field: str(copied / "others")}))
    with pytest.raises(ValueError, match=r"frames was \[5\] and is \[9\]"):
        make_cache(cache_config(copied, frames=(9,)))
    # The same weights at another place are the same.
    shutil.move(copied / "encoders", copied / "moved")
    moved = {"vae": str(copied / "moved"), "text_encoder": str(copied / "moved")}
    make_cache(cache_config(copied, **moved))
    assert contents(copied / "cache") == before


def test_changed_videos_and_captions_are_refused(copied: Path) -> None:
    before = contents(copied / "cache")
    (copied / "videos" / "two.txt").write_text("a red ball")
    with pytest.raises(ValueError, match=r"two.mp4 has another caption than when it was cached"):
        make_cache(cache_config(copied))
    (copied / "videos" / "two.txt").write_text(CAPTIONS["two.mp4"])
    noise_video(copied / "videos" / "two.mp4", 7, 32, 48)
    with pytest.raises(ValueError, match=r"1 files that have changed since.*two.mp4"):
        make_cache(cache_config(copied))
    assert contents(copied / "cache") == before


def test_halves_are_refused_or_left_out(copied: Path) -> None:
    videos = copied / "videos"
    (videos / "two.txt").unlink()
    (videos / "lost.txt").write_text("a ball")
    config = cache_config(copied, output=str(copied / "other"))
    with pytest.raises(ValueError, match="2 files without their other half") as caught:
        make_cache(config)
    assert "lost.txt: a caption without a video" in str(caught.value)
    assert "two.mp4: no caption" in str(caught.value)
    assert not (copied / "other").exists()
    index = make_cache(cache_config(copied, output=str(copied / "other"), skip_unmatched=True))
    assert len(index.clips) == 4
    assert {one.file for one in index.skipped} == {str(videos / "lost.txt"), "two.mp4"}
    # Once it has a caption, it comes in.
    (videos / "two.txt").write_text("a ball")
    (videos / "lost.txt").unlink()
    index = make_cache(config)
    assert len(index.clips) == 5


def test_one_video_needs_its_own_caption_only(copied: Path) -> None:
    one = str(copied / "videos" / "one.mp4")
    index = make_cache(cache_config(copied, videos=one, output=str(copied / "other")))
    assert {clip.file for clip in index.clips} == {"one.mp4"}
    assert not index.skipped


def test_tiling_is_for_vaes_that_can(copied: Path, monkeypatch) -> None:
    config = cache_config(copied, tiling=True, output=str(copied / "other"))
    assert len(make_cache(config).clips) == 5
    with pytest.raises(ValueError, match="tiling was True and is False"):
        make_cache(cache_config(copied, output=str(copied / "other")))
    monkeypatch.setattr("diffusers.AutoencoderKLWan.enable_tiling", None)
    with pytest.raises(ValueError, match="tiling is True, and vae, a AutoencoderKLWan, can't be"):
        make_cache(cache_config(copied, tiling=True, output=str(copied / "third")))


def test_a_cache_without_text(copied: Path) -> None:
    index = make_cache(cache_config(copied, text_encoder=None, output=str(copied / "other")))
    assert index.text_channels is None
    assert {clip.text for clip in index.clips} == {-1}
    assert not (copied / "other" / "text_encoder").exists()


def test_what_is_not_there(copied: Path) -> None:
    with pytest.raises(ValueError, match="nothing does not exist"):
        make_cache(cache_config(copied, videos=str(copied / "nothing")))
    with pytest.raises(ValueError, match="videos, which holds no VAE; give the folder"):
        make_cache(cache_config(copied, vae=str(copied / "videos")))
    config = copied / "encoders" / "vae" / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"_class_name": "DiffusionPipeline"}))
    with pytest.raises(ValueError, match=r"_class_name='DiffusionPipeline'; a video VAE"):
        make_cache(cache_config(copied))
    config.write_text(json.dumps(values))
    for path in (copied / "videos").rglob("*.txt"):
        path.unlink()
    with pytest.raises(ValueError, match="holds no caption of any video; put one"):
        make_cache(cache_config(copied))
    with pytest.raises(ValueError, match=r"frames is 6; 4 \* k \+ 1 is allowed.*like 5 or 9"):
        make_cache(cache_config(copied, frames=(6,), text_encoder=None, output=str(copied / "o")))
    with pytest.raises(ValueError, match="sizes has 30 x 48; multiples of 16 are allowed"):
        make_cache(
            cache_config(copied, sizes=((30, 48),), text_encoder=None, output=str(copied / "o"))
        )


def test_an_index_is_held_to_its_seal(copied: Path) -> None:
    path = copied / "cache" / "index.json"
    text = path.read_text()
    assert '"channels": 4' in text
    path.write_text(text.replace('"channels": 4', '"channels": 5'))
    with pytest.raises(ValueError, match="is damaged: its checksum does not fit"):
        CacheIndex.read(copied / "cache")


def test_an_index_of_another_kind(copied: Path) -> None:
    path = copied / "cache" / "index.json"
    record = json.loads(path.read_text())
    outside = [["../x.safetensors", *text[1:]] for text in record["texts"]]
    cases = [
        ({"format": "freqformer-cache-9"}, "has format 'freqformer-cache-9'"),
        ({"clips": 3}, r"index.json is damaged \(TypeError"),
        ({"compression": [4]}, r"index.json is damaged \(ValueError"),
        ({"texts": outside}, r"names \['../x.safetensors'\], which are no files of it"),
    ]
    for change, message in cases:
        path.write_text(json.dumps(sealed(record | change)))
        with pytest.raises(ValueError, match=message):
            CacheIndex.read(copied / "cache")
