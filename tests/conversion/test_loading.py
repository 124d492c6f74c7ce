"""Folders that can't be converted are named with what they are and what to do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.tiny_conversions import make_wan_folder, tiny_conversion
from tests.support.tiny_encoders import tiny_vae

from freqformer.conversion import convert
from freqformer.conversion.loading import transformer_kind
from freqformer.training.config import DataConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wan_folder(tmp_path_factory.mktemp("wan"))


def test_a_cache_of_another_vae_is_refused(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "transformer").mkdir(parents=True)
    index = (folder / "wan" / "model_index.json").read_text(encoding="utf-8")
    (other / "model_index.json").write_text(index, encoding="utf-8")
    tiny_vae(seed=3).save_pretrained(other / "vae")
    config = tiny_conversion(folder, output=str(tmp_path / "out"))
    with pytest.raises(
        ValueError, match=r"made by another VAE than that of .* make a cache with --vae"
    ):
        convert(replace(config, pipeline=str(other)))


def test_a_bucket_that_is_too_small_for_the_density_is_refused_at_once(
    folder: Path, tmp_path: Path
) -> None:
    config = tiny_conversion(folder, output=str(tmp_path / "out"))
    small = replace(config.windows, density=0.05)
    with pytest.raises(ValueError, match=r"density is 0\.05; on Grid.* and more is allowed"):
        convert(replace(config, windows=small))


def test_models_of_diffusers_need_a_cache(folder: Path, tmp_path: Path) -> None:
    config = tiny_conversion(folder, output=str(tmp_path / "out"))
    with pytest.raises(
        ValueError, match=r"takes latents, and data\.cache is None.*freqformer cache"
    ):
        convert(replace(config, data=DataConfig(num_frames=2, height=24, width=32)))


@pytest.mark.parametrize(
    ("mark", "told"),
    [
        ("pipeline/model_index.json", "the output of a training run; its pipeline is allowed"),
        ("adapter.json", "which is an adapter; a saved pipeline is allowed"),
        ("index.json", "which is a cache"),
        ("config.json", "which is a single model"),
        ("notes.txt", "which holds no model_index.json"),
        (None, "which does not exist"),
    ],
)
def test_other_folders_are_refused_with_what_they_are(
    tmp_path: Path, mark: str | None, told: str
) -> None:
    place = tmp_path / "place"
    if mark is not None:
        (place / mark).parent.mkdir(parents=True)
        (place / mark).write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=told):
        transformer_kind(place, "transformer")


def test_other_transformers_are_refused(tmp_path: Path) -> None:
    index = tmp_path / "model_index.json"
    for parts, told in (
        ({"transformer": ["diffusers", "FluxTransformer2DModel"]}, "with a FluxTransformer2DModel"),
        ({"unet": ["diffusers", "UNet2DModel"]}, "with a None as transformer"),
        ({"transformer": None}, "with a None as transformer"),
    ):
        index.write_text(json.dumps(parts), encoding="utf-8")
        with pytest.raises(ValueError, match=told):
            transformer_kind(tmp_path, "transformer")
    index.write_text(
        json.dumps(
            {"transformer": ["diffusers", "WanTransformer3DModel"], "transformer_2": [None, None]}
        ),
        encoding="utf-8",
    )
    assert transformer_kind(tmp_path, "transformer") == "WanTransformer3DModel"


def test_a_modular_pipeline_is_asked_about_one_clip_at_a_time(folder: Path, tmp_path: Path) -> None:
    kind = "MiniMaxH3Transformer3DModel"
    parts = {"transformer": ["diffusers", kind, {"subfolder": "transformer"}]}
    index = tmp_path / "pipe" / "modular_model_index.json"
    index.parent.mkdir()
    index.write_text(json.dumps(parts), encoding="utf-8")
    assert transformer_kind(index.parent, "transformer") == kind
    config = tiny_conversion(folder, output=str(tmp_path / "out"))
    two = replace(config, pipeline=str(index.parent), run=replace(config.run, batch_size=2))
    with pytest.raises(ValueError, match=r"batch_size is 2.* one clip at a time.*accumulation"):
        convert(two)
