"""Folders of adapters: safetensors and JSON, whole or refused with the remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.integrations.converted.test_learned import every_pattern, fresh, moved
from tests.support.tiny_conversions import FAMILIES, velocity

from freqformer._files import sealed
from freqformer.integrations.diffusers import enable_frequency_attention
from freqformer.integrations.diffusers.converted.adapter import Adapter, AdapterSettings
from freqformer.integrations.diffusers.converted.windows import WindowSettings
from freqformer.integrations.diffusers.families import family_of


@pytest.fixture
def model() -> Any:
    return FAMILIES["wan"]()[0]


@every_pattern
@torch.no_grad()
def test_a_loaded_adapter_repeats_the_saved_ones_bits(
    model: Any, tmp_path: Path, windows: WindowSettings
) -> None:
    _, given = FAMILIES["wan"]()
    adapter = moved(fresh(model, windows))
    adapter.save(tmp_path / "adapter")
    with enable_frequency_attention(model, adapter=adapter):
        before = velocity(model, given)
    with enable_frequency_attention(model, adapter=tmp_path / "adapter"):
        assert torch.equal(velocity(model, given), before)
    loaded = Adapter.load(tmp_path / "adapter")
    assert loaded.settings == adapter.settings
    assert loaded.layers == adapter.layers
    assert loaded.origin == adapter.origin
    assert loaded.tensors.keys() == adapter.tensors.keys()


def test_an_adapter_that_names_no_pattern_has_windows(model: Any, tmp_path: Path) -> None:
    """As versions wrote it that knew no other."""
    folder = tmp_path / "adapter"
    adapter = fresh(model)
    adapter.save(folder)
    (folder / "freqformer-manifest.json").unlink()
    record = json.loads((folder / "adapter.json").read_text(encoding="utf-8"))
    assert record["settings"]["windows"].pop("pattern") == "window"
    (folder / "adapter.json").write_text(json.dumps(sealed(record)), encoding="utf-8")
    assert Adapter.load(folder).settings == adapter.settings


@pytest.mark.parametrize("change", ["lora", "full"])
def test_it_holds_safetensors_and_json_alone(model: Any, tmp_path: Path, change: Any) -> None:
    folder = tmp_path / "adapter"
    fresh(model, change=change).save(folder)
    matrices = {"lora": "lora.safetensors", "full": "projections.safetensors"}[change]
    assert {path.name for path in folder.iterdir()} == {
        "adapter.json",
        "attention.safetensors",
        matrices,
        "freqformer-manifest.json",
    }
    names = set(load_file(folder / "attention.safetensors"))
    assert all(".gates." in name or ".router." in name for name in names)


def test_lora_has_the_names_that_diffusers_gives_it(model: Any, tmp_path: Path) -> None:
    fresh(model).save(tmp_path / "adapter")
    lora = load_file(tmp_path / "adapter" / "lora.safetensors")
    assert set(lora) == {
        f"transformer.blocks.{place}.attn1.{projection}.lora_{side}.weight"
        for place in range(3)
        for projection in ("to_q", "to_k", "to_v", "to_out.0")
        for side in "AB"
    }
    assert lora["transformer.blocks.0.attn1.to_q.lora_A.weight"].shape == (4, 32)


def test_peft_reads_its_lora(model: Any, tmp_path: Path) -> None:
    """By diffusers' own loading, as a LoRA without windows: the same projections."""
    pytest.importorskip("peft")
    adapter = moved(fresh(model))
    adapter.save(tmp_path / "adapter")
    layers = dict(family_of(model).layers(model))
    learned = adapter.for_layers(adapter.transformer, layers)
    x = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(3))
    name, layer = next(iter(layers.items()))
    view = learned.get_submodule(name).view(layer)  # type: ignore[operator]
    wanted = [view.to_q(x), view.to_k(x), view.to_v(x), view.to_out[0](x)]
    before = layer.to_q(x)
    model.load_lora_adapter(load_file(tmp_path / "adapter" / "lora.safetensors"))
    found = [layer.to_q(x), layer.to_k(x), layer.to_v(x), layer.to_out[0](x)]
    for other, own in zip(found, wanted, strict=True):
        torch.testing.assert_close(other, own)
    assert not torch.allclose(found[0], before)


def test_other_folders_are_refused_with_what_they_are(model: Any, tmp_path: Path) -> None:
    cases = {
        "nowhere": "does not exist",
        "pipeline": "is a pipeline and no adapter",
        "table": "is a routing table and no adapter",
        "cache": "is a cache and no adapter",
        "run": "is the output of a conversion, whose adapter is",
        "empty": "holds no adapter",
    }
    marks = {
        "pipeline": "model_index.json",
        "table": "routing_table.json",
        "cache": "index.json",
        "run": "adapter/adapter.json",
        "empty": "notes.txt",
    }
    for name, mark in marks.items():
        path = tmp_path / name / mark
        path.parent.mkdir(parents=True)
        path.write_text("{}", encoding="utf-8")
    for name, told in cases.items():
        with pytest.raises(ValueError, match=f"{name} {told}.*freqformer convert"):
            enable_frequency_attention(model, adapter=tmp_path / name)


def test_damage_and_later_versions_are_refused(model: Any, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    fresh(model).save(folder)
    path = folder / "lora.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] + b"\0\1\2\3")
    with pytest.raises(ValueError, match=r"lora\.safetensors is damaged"):
        Adapter.load(folder)
    path.write_bytes(whole)
    (folder / "freqformer-manifest.json").unlink()
    record = json.loads((folder / "adapter.json").read_text(encoding="utf-8"))
    for changed, told in (
        ({"format": "freqformer-adapter-9"}, "has format 'freqformer-adapter-9'"),
        ({"transformer": "Other"}, "is damaged: its checksum"),
    ):
        text = json.dumps(record | changed)
        (folder / "adapter.json").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=told):
            Adapter.load(folder)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="change is 'some'"):
        AdapterSettings(change="some")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rank is 0"):
        AdapterSettings(rank=0)
