"""Saved models that are incomplete, damaged or not what they claim to be."""

from __future__ import annotations

import shutil

import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import nn

from freqformer import FreqFormerPipeline, FreqFormerTransformer3DModel
from freqformer.models.loading import ALIGNMENT, align_parameters

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
CONFIG = "transformer/config.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    model = FreqFormerTransformer3DModel(patch_size=(1, 2, 2), num_layers=1, num_heads=3, head_dim=8)
    FreqFormerPipeline(model, FlowMatchEulerDiscreteScheduler()).save_pretrained(folder)
    return folder


def change(folder, name, old, new):
    path = folder / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


DAMAGE = {
    "folder gone": (shutil.rmtree, "neither a valid local path"),
    "no index": (lambda folder: (folder / "model_index.json").unlink(), "can't be loaded"),
    "index cut short": (lambda folder: (folder / "model_index.json").write_text("{"), "not a valid JSON file"),
    "no config": (lambda folder: (folder / CONFIG).unlink(), "can't be loaded"),
    "config cut short": (lambda folder: (folder / CONFIG).write_text("{"), "not a valid JSON file"),
    "config out of range": (lambda folder: change(folder, CONFIG, '"head_dim": 8', '"head_dim": 7'), "head_dim 7"),
    "config of a wider model": (lambda folder: change(folder, CONFIG, '"head_dim": 8', '"head_dim": 16'), "shape"),
    "config of a deeper model": (
        lambda folder: change(folder, CONFIG, '"num_layers": 1', '"num_layers": 2'),
        "weights of another model: 27 are missing",
    ),
    "config of a dense model": (
        lambda folder: change(folder, CONFIG, '"attention": "frequency"', '"attention": "dense"'),
        "0 are missing .* unknown .*router",
    ),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "can't be loaded"),
    "weights cut short": (
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-64]),
        "can't be loaded",
    ),
    "pickled weights": (
        lambda folder: (folder / WEIGHTS).rename(folder / "transformer/diffusion_pytorch_model.bin"),
        r"no file named diffusion_pytorch_model\.safetensors",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_what_is_not_a_whole_pipeline_is_refused(case, saved, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    spoil, message = DAMAGE[case]
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        FreqFormerPipeline.from_pretrained(folder)


def test_loading_reports_as_diffusers_does(saved):
    model, info = FreqFormerTransformer3DModel.from_pretrained(saved, subfolder="transformer", output_loading_info=True)
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
