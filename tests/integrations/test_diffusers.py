"""Frequency attention in a small random Wan model: exact where it should be, and taken back without a trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

from freqformer.config import Band, FreqFormerConfig
from freqformer.integrations.diffusers import FrequencyProcessor, enable_frequency_attention
from freqformer.routing import RoutingTable

LOW, MID, HIGH, DENSE = map(int, Band)
LAYERS, HEADS = 3, 2
CONFIG = FreqFormerConfig(tile=(2, 4, 4), compression=8, mid_tiles=2, window=(1, 1, 2), summary_tokens=4)
EVERY = FreqFormerConfig(tile=(2, 4, 4), mid_tiles=None, summary_tokens=0)
"""MID heads see every tile and nothing else: dense attention by another way."""


def make_table(bands: Sequence[Sequence[Sequence[int]]], config: FreqFormerConfig = CONFIG) -> RoutingTable:
    tensor = torch.tensor(bands)
    return RoutingTable(tensor, torch.full_like(tensor, config.mid_tiles or 0), config)


def uniform(bands: Sequence[int], config: FreqFormerConfig = CONFIG) -> RoutingTable:
    return make_table([[bands] * LAYERS], config)


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=HEADS,
        attention_head_dim=24,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=64,
        num_layers=LAYERS,
        rope_max_seq_len=32,
    )
    return model.eval()


def call(model: Any, timestep: Sequence[float] = (500.0,), size: tuple[int, int, int] = (5, 12, 18)) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    video = torch.randn(1, 4, *size, generator=draw).expand(len(timestep), -1, -1, -1, -1)
    text = torch.randn(1, 7, 16, generator=draw).expand(len(timestep), -1, -1)
    with torch.no_grad():
        return model(video, torch.tensor(timestep), text).sample


def test_dense_layers_keep_their_processor_to_the_last_bit(model: Any) -> None:
    before, processors = call(model), [block.attn1.processor for block in model.blocks]
    with enable_frequency_attention(model, uniform([DENSE] * HEADS)):
        assert [block.attn1.processor for block in model.blocks] == processors
        assert torch.equal(call(model), before)


def test_heads_that_see_every_tile_are_dense_up_to_rounding(model: Any) -> None:
    before = call(model, (500.0, 20.0))
    with enable_frequency_attention(model, uniform([MID, DENSE], EVERY)):
        after = call(model, (500.0, 20.0))
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def test_bands_differ_from_dense_and_are_taken_back_without_a_trace(model: Any) -> None:
    before, state = call(model), set(model.state_dict())
    processors = [block.attn1.processor for block in model.blocks]
    handle = enable_frequency_attention(model, uniform([LOW, HIGH]))
    assert set(model.state_dict()) == state
    assert all(isinstance(block.attn1.processor, FrequencyProcessor) for block in model.blocks)
    assert float((call(model) - before).norm() / before.norm()) > 1e-3
    handle.remove()
    handle.remove()
    assert [block.attn1.processor for block in model.blocks] == processors
    assert not model._forward_pre_hooks
    assert torch.equal(call(model), before)


def test_bands_follow_layer_and_timestep_of_every_sample(model: Any) -> None:
    """With little noise all heads are dense; with much the second layer's are LOW."""
    before = call(model, (100.0, 900.0))
    quiet, dense = [[MID, MID]] * LAYERS, [MID, MID]
    config = FreqFormerConfig(tile=(2, 4, 4), mid_tiles=None, summary_tokens=0, compression=8)
    with enable_frequency_attention(model, make_table([quiet, [dense, [LOW, LOW], dense]], config)):
        after = call(model, (100.0, 900.0))
        swapped = call(model, (900.0, 100.0))
    torch.testing.assert_close(after[0], before[0], rtol=1e-4, atol=1e-5)
    assert float((after[1] - before[1]).norm() / before[1].norm()) > 1e-3
    torch.testing.assert_close(swapped[0], after[1], rtol=1e-4, atol=1e-5)


def test_lists_that_differ_between_buckets(model: Any) -> None:
    table = RoutingTable(
        torch.full((2, LAYERS, HEADS), MID), torch.tensor([0, 1])[:, None, None].expand(2, LAYERS, HEADS).clone(), CONFIG
    )
    with enable_frequency_attention(model, table):
        both = call(model, (100.0, 900.0))
        alone = [call(model, (timestep,))[0] for timestep in (100.0, 900.0)]
    torch.testing.assert_close(both[0], alone[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both[1], alone[1], rtol=1e-4, atol=1e-5)


def test_short_videos_run_the_models_own_attention(model: Any) -> None:
    before = call(model)
    with enable_frequency_attention(model, uniform([LOW, HIGH]), min_tokens=271):
        assert torch.equal(call(model), before)  # 5 * 6 * 9 tokens
        longer = call(model, size=(6, 12, 18))
    assert not torch.equal(longer, call(model, size=(6, 12, 18)))


def test_timesteps_by_token_count_as_the_largest(model: Any) -> None:
    tokens = 5 * 6 * 9
    by_token = torch.full((1, tokens), 900.0)
    by_token[:, :54] = 0.0
    draw = torch.Generator().manual_seed(1)
    given = (torch.randn(1, 4, 5, 12, 18, generator=draw), torch.randn(1, 7, 16, generator=draw))
    changed = uniform([LOW, LOW]).bands
    table = make_table([[[DENSE] * HEADS] * LAYERS, changed[0].tolist()])
    with torch.no_grad():
        before = model(given[0], by_token, given[1]).sample
        with enable_frequency_attention(model, table):
            after = model(hidden_states=given[0], timestep=by_token, encoder_hidden_states=given[1]).sample
    assert float((after - before).norm() / before.norm()) > 1e-3


def test_gradients_come_through(model: Any) -> None:
    with enable_frequency_attention(model, uniform([MID, HIGH])):
        draw = torch.Generator().manual_seed(1)
        given = (torch.randn(1, 4, 3, 8, 8, generator=draw), torch.tensor([500.0]), torch.randn(1, 7, 16, generator=draw))
        model(*given).sample.square().mean().backward()
    grads = [block.attn1.to_q.weight.grad for block in model.blocks]
    assert all(grad is not None and bool(grad.any()) for grad in grads)
    model.zero_grad()


def test_what_does_not_fit_is_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="transformer is a Linear; WanTransformer3DModel is allowed"):
        enable_frequency_attention(torch.nn.Linear(1, 1), uniform([LOW, HIGH]))
    with pytest.raises(ValueError, match="table has 1 layers; 3 are allowed"):
        enable_frequency_attention(model, make_table([[[LOW, HIGH]]]))
    with pytest.raises(ValueError, match="layers of 3 heads; layer 0 of 2 heads"):
        enable_frequency_attention(model, uniform([LOW, HIGH, HIGH]))
    assert not model._forward_pre_hooks
    with (
        enable_frequency_attention(model, uniform([LOW, HIGH])),
        pytest.raises(ValueError, match=r"has frequency attention already: call remove\(\)"),
    ):
        enable_frequency_attention(model, uniform([LOW, HIGH]))


def test_fused_projections_are_refused_at_the_call(model: Any) -> None:
    with enable_frequency_attention(model, uniform([LOW, HIGH])):
        model.blocks[0].attn1.fused_projections = True
        try:
            with pytest.raises(ValueError, match="given fused projections, and none is allowed: call unfuse"):
                call(model)
        finally:
            model.blocks[0].attn1.fused_projections = False
