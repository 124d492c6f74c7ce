"""The transformer saved, loaded, copied, offloaded and made on the meta device."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch
from safetensors.torch import save_file
from tests.support.layers import weights_of
from tests.support.models import FREQUENCY, SIZE, TIMESTEP, make_model, make_video, settings_of

from freqformer import FreqFormerTransformer3DModel


@pytest.mark.parametrize(
    "options", [{"routing": "soft"}, {"routing": "learned"}, {"attention": "dense"}]
)
def test_saved_settings_say_what_ran_and_load_again(options, tmp_path):
    model = make_model(**options)
    chosen = model.config["routing"], model.config["prior"]
    assert chosen == {"soft": ("soft", None), "learned": ("learned", "paper")}.get(
        options.get("routing"), (None, None)
    )
    model.save_pretrained(tmp_path)
    loaded = FreqFormerTransformer3DModel.from_pretrained(tmp_path)
    assert (loaded.config["routing"], loaded.config["prior"]) == chosen


def test_a_file_of_an_older_version_loads(tmp_path, caplog):
    """Its config holds what could not act, its weights no bands but summaries that nothing used."""
    model = make_model(routing="soft", frequency={**FREQUENCY, "summary_tokens": 0})
    model.save_pretrained(tmp_path)
    weights, config = tmp_path / "diffusion_pytorch_model.safetensors", tmp_path / "config.json"
    old = weights_of(model)
    for index in range(len(model.attentions)):
        old[f"transformer_blocks.{index}.attn1.summary_queries"] = torch.randn(3, 2, 8)
        old[f"transformer_blocks.{index}.attn1.summary_offsets"] = torch.randn(3, 3)
    save_file(old, weights)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prior": "paper"}))
    for manifest in set(tmp_path.iterdir()) - {weights, config}:
        manifest.unlink()
    with caplog.at_level("WARNING"):
        loaded = FreqFormerTransformer3DModel.from_pretrained(tmp_path)
    assert caplog.records == []
    with torch.no_grad():
        assert torch.equal(
            loaded(make_video(), TIMESTEP).sample, model(make_video(), TIMESTEP).sample
        )
    meta = FreqFormerTransformer3DModel.from_config(model.config)
    assert meta.load_state_dict(old).missing_keys == []


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
    config.write_text(json.dumps(json.loads(config.read_text()) | {"allocation": [1, 1, 1]}))
    for path in tmp_path.iterdir():
        if "manifest" in path.name:
            path.unlink()
    with pytest.raises(ValueError, match=r"allocation \[2, 2, 2\], and this one has \[1, 1, 1\]"):
        FreqFormerTransformer3DModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "options", [{"routing": "soft"}, {"routing": "fixed"}, {"attention": "dense"}]
)
def test_models_from_the_meta_device_and_pickles_are_the_model(options):
    model = make_model(**options)
    settings = settings_of(options.get("attention")) | options
    with torch.device("meta"):
        first, second = (FreqFormerTransformer3DModel(**settings) for _ in range(2))
    first.to_empty(device="cpu").load_state_dict(model.state_dict())
    second.load_state_dict(model.state_dict(), assign=True)
    with torch.no_grad():
        expected = model(make_video(), TIMESTEP).sample
        for other in (first, second, pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
            assert torch.equal(other(make_video(), TIMESTEP).sample, expected)


@pytest.mark.parametrize("buffers", [False, True])
@pytest.mark.parametrize("routing", ["soft", "timed", "learned", "fixed"])
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
    "options", [{}, {"routing": "timed"}, {"routing": "fixed"}, {"attention": "dense"}]
)
def test_every_parameter_of_a_default_model_gets_a_gradient(options):
    sizes = {name: value for name, value in SIZE.items() if name != "in_channels"}
    model = FreqFormerTransformer3DModel(**sizes, **options)
    model(torch.randn(1, 3, 4, 4, 4), TIMESTEP[:1]).sample.square().mean().backward()
    assert [name for name, x in model.named_parameters() if x.grad is None] == []
