"""Frequency attention beside what people run with a pipeline: caches, offload, LoRA, other dtypes,
guidance in one call or two, exceptions and training."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from diffusers import (
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from tests.support.tiny_pipelines import generate, tiny_wan_pipeline, tiny_wan_transformer

from freqformer.config import Band, FreqFormerConfig
from freqformer.integrations.diffusers import (
    FrequencyProcessor,
    disable_frequency_attention,
    enable_frequency_attention,
)
from freqformer.routing import RoutingTable

SMALL: dict[str, Any] = {"density": 0.5, "min_tokens": 1}
BARE: dict[str, Any] = {**SMALL, "start_percent": 0}
STEPS = 8
SIZE = (5, 16, 20)
"""Of latents: 400 tokens."""
CACHES: dict[str, Callable[[Any], Any]] = {
    "first block": lambda pipe: FirstBlockCacheConfig(threshold=0.3),
    "mag": lambda pipe: MagCacheConfig(
        threshold=0.5,
        retention_ratio=0.1,
        num_inference_steps=STEPS,
        mag_ratios=torch.full((STEPS,), 0.95),
    ),
    "taylor": lambda pipe: TaylorSeerCacheConfig(
        cache_interval=2,
        disable_cache_before_step=2,
        taylor_factors_dtype=torch.float32,
        cache_identifiers=[r"blocks\.\d+\.attn1"],
    ),
    "pyramid": lambda pipe: PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(10, 990),
        spatial_attention_block_identifiers=("blocks",),
        current_timestep_callback=lambda: float(pipe._current_timestep),
    ),
}


@pytest.fixture
def pipe() -> Any:
    return tiny_wan_pipeline()


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    return tiny_wan_transformer()


def every_tile() -> RoutingTable:
    """Heads that see all of it: dense attention by bands."""
    bands = torch.full((1, 3, 2), Band.MID.value)
    config = FreqFormerConfig(tile=(4, 4, 4), mid_tiles=None)
    return RoutingTable(bands, torch.zeros_like(bands), config)


def call(model: Any, timestep: list[float], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Samples that differ."""
    draw = torch.Generator().manual_seed(1)
    video = torch.randn(len(timestep), 16, *SIZE, generator=draw).to(dtype)
    text = torch.randn(len(timestep), 7, 16, generator=draw).to(dtype)
    return model(video, torch.tensor(timestep), text).sample


@pytest.mark.parametrize("first", ["cache", "bands"])
@pytest.mark.parametrize("name", CACHES)
def test_caches_skip_the_same_with_it(pipe: Any, name: str, first: str) -> None:
    # Latents: the decoder is the pipeline's own, and takes most of the time.
    told: dict[str, Any] = {"num_inference_steps": STEPS, "output_type": "latent"}
    plain = generate(pipe, **told)

    def cached(table: RoutingTable | None, **dials: Any) -> torch.Tensor:
        config = CACHES[name](pipe)
        if first == "cache":
            pipe.transformer.enable_cache(config)
        if table is not None or dials:
            enable_frequency_attention(pipe, table, **dials)
        if first == "bands":
            pipe.transformer.enable_cache(config)
        made = generate(pipe, **told)
        pipe.transformer.disable_cache()
        disable_frequency_attention(pipe)
        return made

    wanted = cached(None)
    assert not torch.equal(wanted, plain), "the cache skipped nothing"
    torch.testing.assert_close(cached(every_tile()), wanted, rtol=1e-3, atol=1e-4)
    banded = cached(None, **SMALL)
    assert not torch.allclose(banded, wanted, atol=1e-3)
    assert bool(banded.isfinite().all())
    assert torch.equal(generate(pipe, **told), plain)


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_groups_of_layers_wait_elsewhere(pipe: Any, kind: str) -> None:
    with enable_frequency_attention(pipe, **SMALL):
        here = generate(pipe)
        cpu = torch.device("cpu")
        groups = {"num_blocks_per_group": 1} if kind == "block_level" else {}
        pipe.transformer.enable_group_offload(cpu, cpu, offload_type=kind, **groups)
        torch.testing.assert_close(generate(pipe), here)


def test_one_model_at_a_time_on_the_device(pipe: Any) -> None:
    with enable_frequency_attention(pipe, **SMALL) as handle:
        here = generate(pipe)
        pipe.enable_model_cpu_offload(device="cpu")
        torch.testing.assert_close(generate(pipe), here)
        assert handle.density is not None


@pytest.mark.parametrize("first", ["offload", "bands"])
def test_one_layer_at_a_time_on_the_device(pipe: Any, first: str) -> None:
    with enable_frequency_attention(pipe, **SMALL):
        here = generate(pipe)
    # What enable_sequential_cpu_offload does, which asks for the number of a GPU.
    device = torch.device("cpu")
    if first == "offload":
        cpu_offload(pipe.transformer, execution_device=device)
    with enable_frequency_attention(pipe, **SMALL) as handle:
        if first == "bands":
            cpu_offload(pipe.transformer, execution_device=device)
        torch.testing.assert_close(generate(pipe), here)
        assert handle.density is not None
    assert pipe.transformer.blocks[0].attn1.to_q.weight.device.type == "meta"


def test_an_enabled_pipeline_is_saved_as_it_was(pipe: Any, tmp_path: Path) -> None:
    """Tables and bands are no part of it."""
    plain = generate(pipe)
    with enable_frequency_attention(pipe, **SMALL):
        pipe.save_pretrained(tmp_path / "enabled")
        banded = generate(pipe)
    pipe.save_pretrained(tmp_path / "plain")
    files = [path.relative_to(tmp_path / "plain") for path in (tmp_path / "plain").rglob("*.*")]
    assert len(files) > 8
    for name in files:
        kept = (tmp_path / "enabled" / name).read_bytes()
        assert kept == (tmp_path / "plain" / name).read_bytes(), name
    loaded = type(pipe).from_pretrained(tmp_path / "enabled")
    loaded.set_progress_bar_config(disable=True)
    torch.testing.assert_close(generate(loaded), plain)
    with enable_frequency_attention(loaded, **SMALL):
        torch.testing.assert_close(generate(loaded), banded)


def test_compiled_blocks_have_two_graphs() -> None:
    """Dense and banded, for all layers, steps, calls of guidance and prompts, and also where the
    density falls and where layers, steps or both differ; so it is with gradients. In a process
    without run-time type checks, which no trace can follow."""
    program = [sys.executable, "-m", "tests.support.compiled_pipelines"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if "graphs" in line] == [
        "wan falling 0.52 2 graphs same",
        "wan constant 0.52 2 graphs same",
        "wan constant 0.45 2 graphs same",
        "calibrated 2 graphs same",
        "trained 2 graphs same",
        "hunyuan_video15 2 graphs same",
        "ltx 2 graphs same",
    ]


@pytest.mark.parametrize("first", ["adapter", "bands"])
def test_adapters_before_and_after(model: Any, first: str) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    config = peft.LoraConfig(
        r=4, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False, lora_alpha=16
    )
    before = call(model, [500.0])
    if first == "adapter":
        model.add_adapter(config)
    handle = enable_frequency_attention(model, every_tile())
    if first == "bands":
        model.add_adapter(config)
    after = call(model, [500.0])
    handle.remove()
    wanted = call(model, [500.0])
    assert not torch.allclose(wanted, before, atol=1e-2)
    torch.testing.assert_close(after, wanted, rtol=1e-3, atol=1e-4)
    with enable_frequency_attention(model, **BARE):
        call(model, [500.0]).square().mean().backward()
    lora = [x.grad for name, x in model.named_parameters() if "attn1" in name and "lora_" in name]
    assert len(lora) == 3 * 3 * 2
    assert all(grad is not None and bool(grad.any()) for grad in lora)


def four_bits(model: Any) -> None:
    """The blocks' linear layers by bitsandbytes, which diffusers itself loads on a GPU alone."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    for block in model.blocks:
        for parent in list(block.modules()):
            for name, layer in list(parent.named_children()):
                if type(layer) is torch.nn.Linear:
                    made = bitsandbytes.nn.Linear4bit(
                        layer.in_features, layer.out_features, compute_dtype=torch.float32
                    )
                    made.load_state_dict(layer.state_dict())
                    setattr(parent, name, made.to("cpu"))


def eight_bits(model: Any) -> None:
    """All linear layers by torchao, which asks for widths of whole 16s."""
    torchao = pytest.importorskip("torchao.quantization")
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())


def stored_as_float8(model: Any) -> None:
    """By diffusers: weights are float8 until a layer is called."""
    model.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)


@pytest.mark.parametrize("first", ["weights", "bands"])
@pytest.mark.parametrize("quantise", [four_bits, eight_bits, stored_as_float8])
def test_quantised_weights(model: Any, quantise: Callable[[Any], None], first: str) -> None:
    model.requires_grad_(False)
    before = call(model, [500.0])
    if first == "weights":
        quantise(model)
    handle = enable_frequency_attention(model, every_tile())
    if first == "bands":
        quantise(model)
    made = call(model, [500.0])
    handle.remove()
    wanted = call(model, [500.0])
    assert not torch.equal(wanted, before)
    torch.testing.assert_close(made, wanted, rtol=1e-3, atol=1e-3)
    with enable_frequency_attention(model, **BARE):
        assert not torch.allclose(call(model, [500.0]), wanted, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves(model: Any, dtype: torch.dtype) -> None:
    """As near to float32 as the untouched model in the same dtype, within two times."""
    model.requires_grad_(False)
    exact = call(model, [500.0])
    model.to(dtype)
    own = (call(model, [500.0], dtype).float() - exact).norm()
    with enable_frequency_attention(model, every_tile()):
        made = call(model, [500.0], dtype)
    assert made.dtype == dtype
    assert float((made.float() - exact).norm()) < 2 * float(own)


def test_guidance_in_one_call_is_that_in_two(model: Any) -> None:
    with enable_frequency_attention(model, **BARE):
        both = call(model, [500.0, 500.0])
        draw = torch.Generator().manual_seed(1)
        video = torch.randn(2, 16, *SIZE, generator=draw)
        text = torch.randn(2, 7, 16, generator=draw)
        for sample in range(2):
            rows = slice(sample, sample + 1)
            alone = model(video[rows], torch.tensor([500.0]), text[rows]).sample
            torch.testing.assert_close(both[rows], alone, rtol=1e-4, atol=1e-5)


def test_samples_of_one_batch_may_be_at_other_steps(pipe: Any) -> None:
    """The first is dense still, and the second banded."""
    model = pipe.transformer
    pipe.scheduler.set_timesteps(10)
    dense = call(model, [990.0, 500.0])
    with enable_frequency_attention(pipe, **SMALL):
        mixed = call(model, [990.0, 500.0])
        banded = call(model, [500.0, 500.0])
    torch.testing.assert_close(mixed[0], dense[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed[1], banded[1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(mixed[1], dense[1], atol=1e-3)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of diffusers' DPM++
@pytest.mark.parametrize("scheduler", [UniPCMultistepScheduler, DPMSolverMultistepScheduler])
def test_samplers_of_higher_order(pipe: Any, scheduler: Any) -> None:
    options = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    pipe.scheduler = scheduler(**options)
    wanted = generate(pipe)
    with enable_frequency_attention(pipe, every_tile()):
        torch.testing.assert_close(generate(pipe), wanted, rtol=1e-3, atol=1e-4)
    with enable_frequency_attention(pipe, **SMALL) as handle:
        assert not torch.allclose(generate(pipe), wanted, atol=1e-3)
        assert "4 of 5 steps" in handle.describe()


def test_an_exception_inside_the_with_takes_it_back(pipe: Any) -> None:
    plain = generate(pipe)

    def stop(*_: Any, **__: Any) -> Any:
        raise InterruptedError("enough")

    with pytest.raises(InterruptedError), enable_frequency_attention(pipe, **SMALL):
        generate(pipe, callback_on_step_end=stop)
    layers = [block.attn1.processor for block in pipe.transformer.blocks]
    assert not any(isinstance(processor, FrequencyProcessor) for processor in layers)
    assert not pipe.transformer._forward_pre_hooks
    assert torch.equal(generate(pipe), plain)


def test_an_exception_inside_a_call_leaves_it_on(pipe: Any) -> None:
    with enable_frequency_attention(pipe, **SMALL):
        wanted = generate(pipe)
        hook = pipe.transformer.blocks[-1].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            generate(pipe)
        hook.remove()
        assert torch.equal(generate(pipe), wanted)


def test_gradients_are_the_models_own_where_heads_see_all(model: Any) -> None:
    def grads() -> list[torch.Tensor]:
        model.zero_grad()
        call(model, [500.0]).square().mean().backward()
        return [x.grad.clone() for x in model.parameters() if x.grad is not None]

    wanted = grads()
    with enable_frequency_attention(model, every_tile()):
        found = grads()
    assert len(found) == len(wanted) > 50
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
    with enable_frequency_attention(model, **BARE):
        banded = grads()
    assert len(banded) == len(wanted)
    assert any(not torch.allclose(one, other) for one, other in zip(banded, wanted, strict=True))
