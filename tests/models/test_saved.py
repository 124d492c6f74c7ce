"""Folders that say they are pipelines: no code of theirs runs, and no size is made that the weights
don't have."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from safetensors.torch import load_file, save_file
from tests.support.damaged_folders import damage

from freqformer import FreqFormerPipeline, FreqFormerTransformer3DModel
from freqformer._files import MANIFEST_NAME

TRAP = "import pathlib\npathlib.Path(__file__).with_suffix('.ran').touch()\n"
INDEX, CONFIG = "model_index.json", "transformer/config.json"


def make_saved(folder: Path, vae: Any = None) -> Path:
    model = FreqFormerTransformer3DModel(
        patch_size=(1, 2, 2), num_layers=1, num_attention_heads=3, attention_head_dim=8
    )
    FreqFormerPipeline(model, FlowMatchEulerDiscreteScheduler(), vae).save_pretrained(folder)
    for manifest in folder.rglob(MANIFEST_NAME):
        manifest.unlink()  # an attacker writes his own
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_saved(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def name_a_pipeline_class(folder: Path) -> None:
    edit(folder / INDEX, _class_name=["trap", "Trap"])
    (folder / "trap.py").write_text(TRAP)


def name_a_file_of_the_component(folder: Path) -> None:
    edit(folder / INDEX, transformer=["trap", "Trap"])
    (folder / "transformer" / "trap.py").write_text(TRAP)


def name_a_module_on_the_path(folder: Path) -> None:
    edit(folder / INDEX, scheduler=["trap", "Trap"])
    (folder / "trap.py").write_text(TRAP)


def add_a_component(folder: Path) -> None:
    edit(folder / INDEX, safety_checker=["trap", "Trap"])
    (folder / "trap.py").write_text(TRAP)


def hide_a_file_named_none(folder: Path) -> None:
    (folder / "None.py").write_text(TRAP)


def name_another_class_of_diffusers(folder: Path) -> None:
    edit(folder / INDEX, vae=["diffusers", "DiffusionPipeline"])


def name_a_vae_elsewhere(folder: Path) -> None:
    edit(folder / INDEX, vae=["trap", "AutoencoderKLWan"])
    (folder / "trap.py").write_text(TRAP)


ATTACKS: dict[Callable[[Path], None], str] = {
    name_a_pipeline_class: (
        r"model_index\.json: _class_name is \['trap', 'Trap'\]; "
        r"FreqFormerPipeline is allowed"
    ),
    name_a_file_of_the_component: (
        r"model_index\.json: transformer is \['trap', 'Trap'\]; .* is "
        r"allowed"
    ),
    name_a_module_on_the_path: r"model_index\.json: scheduler is \['trap', 'Trap'\]",
    add_a_component: r"safety_checker is \['trap', 'Trap'\]; no such component is allowed",
    hide_a_file_named_none: r"None\.py",
    name_another_class_of_diffusers: r"vae is \['diffusers', 'DiffusionPipeline'\]",
    name_a_vae_elsewhere: r"vae is \['trap', 'AutoencoderKLWan'\]",
}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_no_code_of_a_folder_runs(attack, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attack(folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    with pytest.raises(ValueError, match=ATTACKS[attack]):
        FreqFormerPipeline.from_pretrained(folder)
    assert not list(folder.rglob("*.ran"))


def test_our_own_check_comes_before_diffusers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that no version of diffusers is asked about a folder that names foreign classes."""
    asked = []
    base = FreqFormerPipeline.__mro__[1]
    monkeypatch.setattr(base, "from_pretrained", classmethod(lambda *_, **__: asked.append(1)))
    for attack in ATTACKS:
        if attack is not hide_a_file_named_none:
            copy = Path(shutil.copytree(folder, folder.with_name(attack.__name__)))
            attack(copy)
            with pytest.raises(ValueError, match=r"model_index\.json"):
                FreqFormerPipeline.from_pretrained(copy)
    assert asked == []


@pytest.mark.parametrize(
    "options", [{"trust_remote_code": True}, {"custom_pipeline": "x"}, {"use_safetensors": False}]
)
def test_arguments_that_would_run_code_are_refused(options: dict[str, Any], folder: Path) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} is .* allowed"):
        FreqFormerPipeline.from_pretrained(folder, **options)


def test_parts_that_the_caller_made_may_be_missing_in_the_folder(folder: Path) -> None:
    model = FreqFormerTransformer3DModel(
        patch_size=(1, 2, 2), num_layers=2, num_attention_heads=3, attention_head_dim=8
    )
    index = json.loads((folder / INDEX).read_text())
    del index["transformer"]
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"model_index\.json names no transformer"):
        FreqFormerPipeline.from_pretrained(folder)
    assert FreqFormerPipeline.from_pretrained(folder, transformer=model).transformer is model


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"num_layers": 10**9},
            "num_layers is 1000000000, and the folder holds weights of another model with 1",
        ),
        (
            {"num_attention_heads": 10**9},
            r"num_attention_heads \* attention_head_dim is 8000000000, .* with 24",
        ),
        ({"attention_head_dim": 10**9}, r"num_attention_heads \* attention_head_dim is 3000000000"),
        ({"in_channels": 10**9}, r"in_channels \* patch_size is 4000000000, .* with 12"),
        ({"patch_size": [1, 2, 10**9]}, r"in_channels \* patch_size is 6000000000"),
    ],
)
def test_sizes_are_those_of_the_weights(fields: dict[str, Any], message: str, folder: Path) -> None:
    edit(folder / CONFIG, **fields)
    for load in (
        lambda: FreqFormerPipeline.from_pretrained(folder),
        lambda: FreqFormerTransformer3DModel.from_pretrained(folder / "transformer"),
        lambda: FreqFormerTransformer3DModel.from_pretrained(folder, subfolder="transformer"),
    ):
        with pytest.raises(ValueError, match=message):
            load()


def make_vae() -> Any:
    statistics = {"latents_mean": [0.1] * 3, "latents_std": [1.0, 2.0, 1.0]}
    return AutoencoderKLWan(
        base_dim=3, z_dim=3, dim_mult=[1, 1, 1, 1], num_res_blocks=1, **statistics
    )


def test_a_vae_without_all_of_its_weights_is_refused(tmp_path: Path) -> None:
    make_saved(tmp_path, make_vae())
    weights = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["decoder.conv_in.bia"] = tensors.pop("decoder.conv_in.bias")
    save_file(tensors, weights)
    with pytest.raises(
        ValueError, match=r"1 are missing \['decoder\.conv_in\.bias'\] and 1 unknown"
    ):
        FreqFormerPipeline.from_pretrained(tmp_path)


def test_what_a_vae_cannot_decode_is_said(tmp_path: Path) -> None:
    make_saved(tmp_path, make_vae())
    pipeline = FreqFormerPipeline.from_pretrained(tmp_path)
    pipeline.vae.register_to_config(patch_size=-1)
    with pytest.raises(
        ValueError,
        match=r"vae, a AutoencoderKLWan, can't decode latents of shape \(1, 3, 2, 2, 2\)",
    ):
        pipeline(5, 16, 16, num_inference_steps=1)


@pytest.mark.parametrize("with_vae", [False, True])
def test_damaged_folders_give_typed_errors_that_name_them(with_vae: bool, tmp_path: Path) -> None:
    """A part of the fuzzing: what once failed was among the kinds of damage that `damage` draws
    from."""
    whole = make_saved(tmp_path / "whole", make_vae() if with_vae else None)
    messages = []
    for seed in range(60 if not with_vae else 20):
        folder = Path(shutil.copytree(whole, tmp_path / f"copy-{seed}"))
        damage(folder, seed)
        try:
            FreqFormerPipeline.from_pretrained(folder)(5, 16, 16, num_inference_steps=1)
        except (ValueError, OSError) as error:
            messages.append(str(error))
        shutil.rmtree(folder, ignore_errors=True)
    assert len(messages) > 10
    assert all("/copy-" in message for message in messages)


def test_sizes_of_a_vae_are_bounded(tmp_path: Path) -> None:
    make_saved(tmp_path, make_vae())
    assert FreqFormerPipeline.from_pretrained(tmp_path).vae is not None
    path = tmp_path / "vae" / "config.json"
    whole = path.read_text()
    for field, value, message in (
        (
            "num_res_blocks",
            10**6,
            r"vae/config\.json: num_res_blocks holds 1000000; \d+ at most is allowed",
        ),
        (
            "scale_factor_temporal",
            0,
            "vae has temporal_compression_ratio=0; integers from 1 to 1024",
        ),
        ("scale_factor_spatial", 2.5, r"spatial_compression_ratio=2\.5"),
        ("z_dim", 2, "vae"),
        (
            "latents_mean",
            [0.0, 1.0],
            r"vae has latents_mean=\[0\.0, 1\.0\] of 2; 3 numbers are allowed",
        ),
        ("latents_std", [1.0, 0.0, 1.0], "vae has latents_std"),
        ("base_dim", 10**12, r"base_dim holds 1000000000000; 1048576 at most"),
        (
            "latents_mean",
            [float("nan")],
            r"vae/config\.json can't be read \(a number that is not finite\)",
        ),
    ):
        edit(path, **{field: value})
        with pytest.raises(ValueError, match=message):
            FreqFormerPipeline.from_pretrained(tmp_path)
        path.write_text(whole)


@pytest.mark.parametrize("shift", [0, -1, "3", float("nan"), 1e9, None, True])
def test_shifts_that_give_no_noise_levels_are_refused(shift: Any, folder: Path) -> None:
    edit(folder / "scheduler" / "scheduler_config.json", shift=shift)
    with pytest.raises(ValueError, match="shift"):
        FreqFormerPipeline.from_pretrained(folder)
