"""Saved models that are incomplete, damaged or not what they claim to be."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from tests.support.damage import flip_bits
from torch import nn

from freqformer import FreqFormerPipeline, FreqFormerTransformer3DModel
from freqformer._files import MANIFEST_NAME, check_manifest
from freqformer.demo.shipped import SHIPPED_MODEL
from freqformer.models.loading import ALIGNMENT, align_parameters

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
CONFIG = "transformer/config.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    model = FreqFormerTransformer3DModel(
        patch_size=(1, 2, 2), num_layers=1, num_attention_heads=3, attention_head_dim=8
    )
    FreqFormerPipeline(model, FlowMatchEulerDiscreteScheduler()).save_pretrained(folder)
    return folder


def change(folder, name, old, new):
    path = folder / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def make_dense(path: Path) -> None:
    config = json.loads(path.read_text())
    config["frequency"] |= {"allocation": "dense", "routing": "fixed", "low_branch": False}
    path.write_text(json.dumps(config))


DAMAGE = {
    "folder gone": (shutil.rmtree, "neither a valid local path"),
    "no index": (
        lambda folder: (folder / "model_index.json").unlink(),
        r"index\.json can't be read",
    ),
    "index cut short": (
        lambda folder: (folder / "model_index.json").write_text("{"),
        r"json can't be read",
    ),
    "no config": (lambda folder: (folder / CONFIG).unlink(), r"config\.json can't be read"),
    "config cut short": (lambda folder: (folder / CONFIG).write_text("{"), r"json can't be read"),
    "config out of range": (
        lambda folder: change(folder, CONFIG, '"attention_head_dim": 8', '"attention_head_dim": 7'),
        r"attention_head_dim is 21, .*weights of another model with 24",
    ),
    "config of a wider model": (
        lambda folder: change(
            folder, CONFIG, '"attention_head_dim": 8', '"attention_head_dim": 16'
        ),
        r"attention_head_dim is 48, .* with 24",
    ),
    "config of a deeper model": (
        lambda folder: change(folder, CONFIG, '"num_layers": 1', '"num_layers": 2'),
        r"config\.json: num_layers is 2, and the folder holds weights of another model with 1",
    ),
    "config of a dense model": (
        lambda folder: make_dense(folder / CONFIG),
        "0 are missing .* unknown .*router",
    ),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "can't be loaded"),
    "weights cut short": (
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-64]),
        "can't be loaded",
    ),
    "pickled weights": (
        lambda folder: (folder / WEIGHTS).rename(
            folder / "transformer/diffusion_pytorch_model.bin"
        ),
        r"no file named diffusion_pytorch_model\.safetensors",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_what_is_not_a_whole_pipeline_is_refused(case, saved, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder, ignore=shutil.ignore_patterns(MANIFEST_NAME))
    spoil, message = DAMAGE[case]
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        FreqFormerPipeline.from_pretrained(folder)


def test_without_manifests_it_loads_as_diffusers_saves_it(saved, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder, ignore=shutil.ignore_patterns(MANIFEST_NAME))
    garbage = bytearray((folder / WEIGHTS).read_bytes())
    garbage[-1] ^= 1
    (folder / WEIGHTS).write_bytes(garbage)
    FreqFormerPipeline.from_pretrained(folder)


def refused(load, folder, path):
    """Whether loading names the file that a bit was flipped in."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the message is looked at below
        load(folder)
    return path.name in str(caught.value)


@pytest.mark.parametrize("count", [20, pytest.param(500, marks=pytest.mark.slow)])
def test_every_flipped_bit_is_named(saved, tmp_path, count):
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {
        *("model_index.json", "scheduler/scheduler_config.json", CONFIG, WEIGHTS),
        *(MANIFEST_NAME, f"transformer/{MANIFEST_NAME}"),
    }
    for path, _ in flip_bits(folder, count):
        assert refused(FreqFormerPipeline.from_pretrained, folder, path)
        if path.parent.name == "transformer":
            assert refused(FreqFormerTransformer3DModel.from_pretrained, path.parent, path)
    FreqFormerPipeline.from_pretrained(folder)


def test_a_part_can_be_saved_again_and_another_file_changed_on_purpose(saved, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    model = FreqFormerTransformer3DModel.from_pretrained(folder, subfolder="transformer")
    torch.nn.init.ones_(model.proj_in.bias)
    model.save_pretrained(folder / "transformer")
    assert bool((FreqFormerPipeline.from_pretrained(folder).transformer.proj_in.bias == 1).all())
    change(folder, "scheduler/scheduler_config.json", '"shift": 1.0', '"shift": 3.0')
    with pytest.raises(
        ValueError, match=rf"scheduler_config\.json is damaged.*or remove {MANIFEST_NAME} if"
    ):
        FreqFormerPipeline.from_pretrained(folder)
    (folder / MANIFEST_NAME).unlink()
    assert FreqFormerPipeline.from_pretrained(folder).scheduler.config["shift"] == 3


def test_nothing_else_in_a_folder_is_listed(tmp_path):
    """Who saves into a folder of videos does not have them read."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.safetensors").touch()
    (tmp_path / "b.mp4").touch()
    (tmp_path / "README.md").touch()
    FreqFormerTransformer3DModel(
        patch_size=(1, 2, 2), num_layers=1, num_attention_heads=3, attention_head_dim=8
    ).save_pretrained(tmp_path)
    listed = json.loads((tmp_path / MANIFEST_NAME).read_text())["files"]
    assert set(listed) == {"config.json", "diffusion_pytorch_model.safetensors"}
    FreqFormerTransformer3DModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["model_index.json", "scheduler/scheduler_config.json", CONFIG])
@pytest.mark.parametrize(
    "text",
    ["[" * 10**5, '{"num_layers": 1e400}', '{"num_layers": 1' + "0" * 40 + "}", "[]", "\x00"],
)
def test_configs_out_of_bounds_are_named(saved, tmp_path, name, text):
    """F117, F122."""
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder, ignore=shutil.ignore_patterns(MANIFEST_NAME))
    (folder / name).write_text(text)
    with pytest.raises(
        ValueError, match=rf"{re.escape(name)} .*give a folder that save_pretrained wrote"
    ):
        FreqFormerPipeline.from_pretrained(folder)


def test_the_shipped_model_is_what_its_manifest_says():
    """Who changes a file of it writes its manifest again:
    freqformer._files.write_manifest(SHIPPED_MODEL, "export")."""
    assert check_manifest(SHIPPED_MODEL, remedy="write the manifest again")
    files = {
        path.relative_to(SHIPPED_MODEL).as_posix()
        for path in SHIPPED_MODEL.rglob("*")
        if path.is_file()
    }
    listed = json.loads((SHIPPED_MODEL / MANIFEST_NAME).read_text())["files"]
    inner = json.loads((SHIPPED_MODEL / "transformer" / MANIFEST_NAME).read_text())["files"]
    manifests = {MANIFEST_NAME, f"transformer/{MANIFEST_NAME}"}
    assert {*listed, *(f"transformer/{name}" for name in inner)} == files - manifests


def test_loading_reports_as_diffusers_does(saved):
    model, info = FreqFormerTransformer3DModel.from_pretrained(
        saved, subfolder="transformer", output_loading_info=True
    )
    assert isinstance(model, FreqFormerTransformer3DModel)
    assert info["missing_keys"] == []


def test_parameters_at_odd_addresses_move_and_keep_their_values():
    module = nn.Linear(4, 4)
    odd = torch.arange(17.0)[1:].view(4, 4)
    assert odd.data_ptr() % ALIGNMENT
    module.weight.data = odd
    parameter = module.weight
    align_parameters(module)
    assert module.weight is parameter
    assert parameter.data_ptr() % ALIGNMENT == 0
    assert torch.equal(parameter, odd)
