"""Frequency attention in small random Helios models: the past is exact, whatever its keys are
scaled by."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_helios import HeliosTransformer3DModel
from tests.support.enabled_models import EVERY, HIGH, LOW, MID, SIZE, Call, every_check, uniform
from tests.support.tiny_transformers import wan_inputs

from freqformer.grid import Grid
from freqformer.integrations.diffusers import enable_frequency_attention

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "amplified": {"is_amplify_history": True},
    "amplified alike": {"is_amplify_history": True, "history_scale_mode": "scalar"},
}
PAST = {"short": 2, "mid": 3, "long": 5}
"""Latent frames; those of the last two fill no whole number of boxes."""


@pytest.fixture(params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    model = HeliosTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=64,
        num_layers=2,
        rope_dim=(8, 8, 8),
        **VARIANTS[request.param],
    )
    if model.blocks[0].attn1.is_amplify_history:
        for block in model.blocks:
            torch.nn.init.normal_(block.attn1.history_key_scale)
    return model.eval()


def call(
    model: Any, timestep: Sequence[float] = (500.0,), size: tuple[int, int, int] = SIZE
) -> torch.Tensor:
    frames, height, width = size
    samples = len(timestep)
    draw = torch.Generator().manual_seed(2)
    past: dict[str, torch.Tensor] = {}
    first = 0
    for name, length in PAST.items():
        latents = torch.randn(1, 4, length, 2 * height, 2 * width, generator=draw)
        past[f"latents_history_{name}"] = latents.expand(samples, -1, -1, -1, -1)
        places = torch.arange(first, first + length)
        past[f"indices_latents_history_{name}"] = places.expand(samples, -1)
        first += length
    places = torch.arange(first, first + frames).expand(samples, -1)
    return model(**wan_inputs(timestep, size), **past, indices_hidden_states=places).sample


@every_check
def test_as_every_family(model: Any, check: Call) -> None:
    check(model, call)


def test_the_past_is_exact(model: Any) -> None:
    _, height, width = SIZE
    mid = 2 * -(-height // 2) * -(-width // 2)
    long = 2 * -(-height // 4) * -(-width // 4)
    with enable_frequency_attention(model, uniform(model, [LOW, HIGH])):
        call(model)
        current = model.blocks[0].attn1.processor.current
        assert current.banded == (Grid(*SIZE), 2 * height * width + mid + long)


def test_several_gpus_are_refused(model: Any) -> None:
    mesh = SimpleNamespace(get_group=lambda: None, size=lambda: 2, get_local_rank=lambda: 0)
    shares = SimpleNamespace(ring_degree=1, _ulysses_mesh=mesh)
    parallel = SimpleNamespace(context_parallel_config=shares, tensor_parallel_config=None)
    with enable_frequency_attention(model, uniform(model, [LOW, HIGH])):
        model.blocks[0].attn1.processor._parallel_config = parallel
        with pytest.raises(ValueError, match=r"a share of the tokens .* run it on one GPU"):
            call(model)
        model.blocks[0].attn1.processor._parallel_config = None
        call(model)


def test_a_piece_without_a_past(model: Any) -> None:
    def run() -> torch.Tensor:
        return model(**wan_inputs([500.0], SIZE)).sample

    before = run()
    with enable_frequency_attention(model, uniform(model, [MID, MID], EVERY)):
        torch.testing.assert_close(run(), before, rtol=1e-4, atol=1e-5)
        assert model.blocks[0].attn1.processor.current.banded == (Grid(*SIZE), 0)
