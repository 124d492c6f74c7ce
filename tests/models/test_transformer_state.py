"""The transformer saved, loaded, copied, offloaded and made on the meta device."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch
from tests.support.layers import record_fields
from tests.support.models import SIZE, TIMESTEP, make_model, make_video, settings_of

from freqformer import FreqFormerConfig, FreqFormerTransformer3DModel
from freqformer.attention import DenseAttention


@pytest.mark.parametrize(
    "options", [{"routing": "soft"}, {"routing": "hard"}, {"allocation": "dense"}]
)
def test_saved_settings_say_what_ran_and_load_again(options, tmp_path):
    model = make_model(**options)
    assert model.config["frequency"] == model.frequency_config.to_dict()
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["frequency"]
    assert FreqFormerConfig.from_dict(saved) == model.frequency_config
    loaded = FreqFormerTransformer3DModel.from_pretrained(tmp_path)
    assert loaded.frequency_config == model.frequency_config


def test_the_record_may_be_given_in_every_form():
    for given in (None, {}, FreqFormerConfig(), FreqFormerConfig().to_dict()):
        model = FreqFormerTransformer3DModel(**SIZE, frequency=given)
        assert model.frequency_config == FreqFormerConfig()
        assert {layer.config for layer in model.attentions} == {FreqFormerConfig()}
    paper = FreqFormerTransformer3DModel(**SIZE, frequency=FreqFormerConfig.paper())
    assert [layer.allocation.tolist() for layer in paper.attentions] == [[0, 1, 2]] * 2
    dense = FreqFormerTransformer3DModel(**SIZE, frequency=FreqFormerConfig.dense())
    assert {type(layer) for layer in dense.attentions} == {DenseAttention}


@pytest.mark.parametrize("place", ["cpu", {"": "cpu"}, "auto"])
def test_a_file_is_placed_by_a_device_map(place, tmp_path):
    pytest.importorskip("accelerate")
    model = make_model(routing="soft", allocation=[1, 2, 2])
    model.save_pretrained(tmp_path)
    loaded = FreqFormerTransformer3DModel.from_pretrained(
        tmp_path, device_map=place, low_cpu_mem_usage=True
    )
    with torch.no_grad():
        assert torch.equal(
            loaded(make_video(), TIMESTEP).sample, model(make_video(), TIMESTEP).sample
        )
    assert [layer.allocation.tolist() for layer in loaded.attentions] == [[1, 2, 2]] * 2


def test_a_file_of_other_bands_is_refused(tmp_path):
    make_model(routing="soft").save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    changed = json.loads(config.read_text())
    changed["frequency"]["allocation"] = [1, 1, 1]
    config.write_text(json.dumps(changed))
    for path in tmp_path.iterdir():
        if "manifest" in path.name:
            path.unlink()
    with pytest.raises(ValueError, match=r"allocation \[2, 2, 2\], and this one has \[1, 1, 1\]"):
        FreqFormerTransformer3DModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "options", [{"routing": "soft"}, {"routing": "fixed"}, {"allocation": "dense"}]
)
def test_models_from_the_meta_device_and_pickles_are_the_model(options):
    model = make_model(**options)
    settings = settings_of(**options)
    with torch.device("meta"):
        first, second = (FreqFormerTransformer3DModel(**settings) for _ in range(2))
    first.to_empty(device="cpu").load_state_dict(model.state_dict())
    second.load_state_dict(model.state_dict(), assign=True)
    with torch.no_grad():
        expected = model(make_video(), TIMESTEP).sample
        for other in (first, second, pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
            assert torch.equal(other(make_video(), TIMESTEP).sample, expected)


@pytest.mark.parametrize("buffers", [False, True])
@pytest.mark.parametrize("routing", ["soft", "timestep", "hard", "fixed"])
def test_a_model_runs_under_sequential_offload(routing, buffers):
    accelerate = pytest.importorskip("accelerate")
    model = make_model(routing=routing).eval()
    with torch.no_grad():
        expected = model(make_video(), TIMESTEP).sample
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"), offload_buffers=buffers)
        assert torch.equal(model(make_video(), TIMESTEP).sample, expected)


def test_a_model_runs_with_weights_stored_in_eight_bits():
    model = make_model(routing="soft").eval().to(torch.bfloat16)
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    with torch.no_grad():
        sample = model(make_video().bfloat16(), TIMESTEP).sample
    assert sample.dtype == torch.bfloat16
    assert bool(sample.isfinite().all())


@pytest.mark.parametrize(
    "options", [{}, {"routing": "timestep"}, {"routing": "fixed"}, {"allocation": "dense"}]
)
def test_every_parameter_of_a_default_model_gets_a_gradient(options):
    sizes = {name: value for name, value in SIZE.items() if name != "in_channels"}
    frequency = record_fields(options) if options else None
    model = FreqFormerTransformer3DModel(**sizes, frequency=frequency)
    model(torch.randn(1, 3, 4, 4, 4), TIMESTEP[:1]).sample.square().mean().backward()
    assert [name for name, x in model.named_parameters() if x.grad is None] == []
