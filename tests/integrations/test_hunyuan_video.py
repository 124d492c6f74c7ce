"""Frequency attention in small random HunyuanVideo models: exact where it should be, and taken back
without a trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTransformer3DModel
from tests.support.enabled_models import (
    CONFIG,
    DENSE,
    EVERY,
    HEADS,
    LOW,
    MID,
    SIZE,
    Call,
    every_check,
    layers_of,
    make_table,
    uniform,
)

from freqformer.integrations.diffusers import FrequencyProcessor, enable_frequency_attention
from freqformer.routing import RoutingTable

TEXT = 7
VARIANTS = {
    "text to video": {},
    "image to video, first frame replaced": {
        "image_condition_type": "token_replace",
        "patch_size_t": 2,
    },
}


@pytest.fixture(params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    model = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=HEADS,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(4, 6, 6),
        **VARIANTS[request.param],
    )
    return model.eval()


def call(
    model: Any,
    timestep: Sequence[float] = (500.0,),
    size: tuple[int, int, int] = SIZE,
    lengths: Sequence[int] | None = None,
    hidden: float | None = None,
) -> torch.Tensor:
    """Lengths of text by sample, all of it by default; `hidden` is put in place of the text that a
    mask hides."""
    draw = torch.Generator().manual_seed(1)
    frames, height, width = size
    samples = len(timestep)
    latents = torch.randn(
        1, 4, frames * model.config.patch_size_t, 2 * height, 2 * width, generator=draw
    )
    seen = torch.arange(TEXT) < torch.tensor(lengths or [TEXT] * samples)[:, None]
    text = torch.randn(1, TEXT, 16, generator=draw).expand(samples, -1, -1)
    return model(
        hidden_states=latents.expand(samples, -1, -1, -1, -1),
        timestep=torch.tensor(timestep),
        encoder_hidden_states=text if hidden is None else text.where(seen[..., None], hidden),
        encoder_attention_mask=seen.long(),
        pooled_projections=torch.randn(1, 8, generator=draw).expand(samples, -1),
        guidance=torch.full((samples,), 6000.0),
    ).sample


@every_check
def test_as_every_family(model: Any, check: Call) -> None:
    check(model, call)


def test_masked_text_of_different_lengths_is_as_unseen_as_in_the_model(model: Any) -> None:
    given = {"timestep": (500.0, 20.0, 900.0), "lengths": (3, TEXT, 1)}
    before = call(model, **given)
    with enable_frequency_attention(model, uniform(model, [MID, MID], EVERY)):
        after = call(model, **given)
        assert not torch.allclose(call(model, given["timestep"])[0], after[0], atol=1e-3)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def test_masks_go_with_their_samples_where_buckets_differ(model: Any) -> None:
    """Samples of one bucket run together, each with its own text."""
    bands = torch.tensor([[[MID, LOW]] * len(layers_of(model))] * 2)
    table = RoutingTable(
        bands, torch.tensor([0, 1])[:, None, None].expand_as(bands).clone(), CONFIG
    )
    given = {"timestep": (900.0, 100.0, 800.0), "lengths": (2, TEXT, 5)}
    with enable_frequency_attention(model, table):
        together = call(model, **given)
        alone = [
            call(model, (t,), lengths=(n,))
            for t, n in zip(given["timestep"], given["lengths"], strict=True)
        ]
        other = call(model, given["timestep"], lengths=(5, TEXT, 2))
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(other[0], together[0], atol=1e-3)


def test_no_band_sees_hidden_text(model: Any) -> None:
    with enable_frequency_attention(model, uniform(model, [LOW, MID])):
        assert torch.equal(
            call(model, lengths=(3,), hidden=5.0), call(model, lengths=(3,), hidden=-5.0)
        )


def test_the_refiner_of_text_is_left_alone_and_two_streams_come_first(model: Any) -> None:
    refiner = [
        block.attn.processor for block in model.context_embedder.token_refiner.refiner_blocks
    ]
    bands = [[LOW, LOW], *[[DENSE, DENSE]] * 3]
    with enable_frequency_attention(model, make_table([bands])) as handle:
        assert list(handle.layer_names) == ["transformer_blocks.0.attn"]
    with enable_frequency_attention(model, uniform(model, [LOW, LOW])) as handle:
        assert [
            block.attn.processor for block in model.context_embedder.token_refiner.refiner_blocks
        ] == refiner
        assert not any(isinstance(processor, FrequencyProcessor) for processor in refiner)
        assert list(handle.layer_names) == [
            "transformer_blocks.0.attn",
            "transformer_blocks.1.attn",
            "single_transformer_blocks.0.attn",
            "single_transformer_blocks.1.attn",
        ]
