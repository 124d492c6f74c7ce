"""Frequency attention in a small random Cosmos model: exact where it should be, and taken back
without a trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_cosmos import CosmosTransformer3DModel
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from tests.support.enabled_models import HIGH, LOW, SIZE, Call, every_check, uniform

from freqformer.integrations.diffusers import enable_frequency_attention

STEPS = 10


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    model = CosmosTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=24,
        num_layers=3,
        mlp_ratio=2,
        text_embed_dim=16,
        adaln_lora_dim=4,
        max_size=(8, 24, 24),
        concat_padding_mask=False,
        extra_pos_embed_type=None,
    )
    return model.eval()


def run(model: Any, timestep: torch.Tensor, size: tuple[int, int, int], **more: Any) -> Any:
    draw = torch.Generator().manual_seed(1)
    frames, height, width = size
    samples = len(timestep)
    video = torch.randn(1, 4, frames, 2 * height, 2 * width, generator=draw)
    text = torch.randn(1, 7, 16, generator=draw)
    return model(
        hidden_states=video.expand(samples, -1, -1, -1, -1),
        timestep=timestep,
        encoder_hidden_states=text.expand(samples, -1, -1),
        **more,
    ).sample


def call(
    model: Any, timestep: Sequence[float] = (500.0,), size: tuple[int, int, int] = SIZE
) -> torch.Tensor:
    """As Predict 2.5 calls it: a noise level for every latent frame, and the first frame given."""
    levels = torch.tensor(timestep)[:, None, None, None, None] / 1000
    levels = levels.repeat(1, 1, size[0], 1, 1)
    levels[:, :, 0] = 0.1
    return run(model, levels, size)


@every_check
def test_as_every_family(model: Any, check: Call) -> None:
    check(model, call)


def test_attention_to_text_is_left_alone(model: Any) -> None:
    own = [block.attn2.processor for block in model.transformer_blocks]
    with enable_frequency_attention(model, uniform(model, [LOW, HIGH])) as handle:
        assert handle.layer_names == [f"transformer_blocks.{place}.attn1" for place in range(3)]
        assert [block.attn2.processor for block in model.transformer_blocks] == own


def first_version() -> tuple[Any, list[dict[str, Any]]]:
    """Calls as `CosmosTextToWorldPipeline` makes them: log(sigma) / 4."""
    scheduler = EDMEulerScheduler(sigma_max=80.0, sigma_min=0.002, sigma_data=1.0)
    scheduler.set_timesteps(STEPS)
    return scheduler, [{"timestep": step[None], "fps": 24} for step in scheduler.timesteps]


def second_version() -> tuple[Any, list[dict[str, Any]]]:
    """As `Cosmos2VideoToWorldPipeline`: sigma / (1 + sigma) of every frame, sigmas up to 80."""
    scheduler = FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    scheduler.register_to_config(sigma_max=80.0, sigma_min=0.002)
    scheduler.set_timesteps(sigmas=torch.linspace(0, 1, STEPS).tolist())
    levels = [sigma / (1 + sigma) for sigma in scheduler.sigmas[:STEPS]]
    return scheduler, [{"timestep": level.expand(1, 1, SIZE[0], 1, 1)} for level in levels]


def third_version() -> tuple[Any, list[dict[str, Any]]]:
    """As `Cosmos2_5_PredictBasePipeline` without given frames: the level itself."""
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    )
    scheduler.set_timesteps(STEPS)
    return scheduler, [{"timestep": sigma[None]} for sigma in scheduler.sigmas[:STEPS]]


@pytest.mark.parametrize("version", [first_version, second_version, third_version])
def test_percentages_are_of_its_schedule(model: Any, version: Any) -> None:
    scheduler, calls = version()
    dials: dict[str, Any] = {"density": 0.7, "min_tokens": 1, "scheduler": scheduler}
    dials["density_schedule"] = "constant"
    seen = []
    levels = []
    with enable_frequency_attention(model, **dials, start_percent=0.3, end_percent=0.9):
        current = model.transformer_blocks[0].attn1.processor.current
        hook = model.transformer_blocks[0].register_forward_pre_hook(
            lambda *_: levels.append(float(current.call.noise_level))
        )
        for given in calls:
            current.banded = None
            run(model, size=SIZE, **given)
            seen.append(current.banded is not None)
        hook.remove()
    assert seen == [False] * 3 + [True] * 6 + [False]
    assert levels == sorted(levels, reverse=True)
    sigmas = scheduler.sigmas[:STEPS]
    wanted = sigmas if version is third_version else sigmas / (1 + sigmas)
    assert levels == pytest.approx(wanted.tolist(), abs=1e-4)
