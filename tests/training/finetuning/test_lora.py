"""What low-rank additions a transformer gets, and what of it trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.support.tiny_pipelines import tiny_wan_transformer
from tests.support.tiny_video_pipelines import tiny_ltx_transformer

from freqformer.training.finetuning.lora import add_lora, lora_state
from freqformer.training.pipeline_config import PipelineConfig

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


def trained(transformer: Any) -> set[str]:
    return {name for name, weight in transformer.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize(
    ("make", "blocks"),
    [(tiny_wan_transformer, "blocks"), (tiny_ltx_transformer, "transformer_blocks")],
)
def test_self_attention_alone_is_trained_in_float32(make: Any, blocks: str) -> None:
    transformer = make().to(torch.bfloat16)
    layers = len(getattr(transformer, blocks))
    names = add_lora(transformer, PipelineConfig(rank=3))
    expected = [f"{blocks}.{k}.attn1.{one}" for k in range(layers) for one in PROJECTIONS]
    assert sorted(names) == sorted(expected)
    assert trained(transformer) == {
        f"{name}.lora_{side}.default.weight" for name in expected for side in "AB"
    }
    for name, weight in transformer.named_parameters():
        assert weight.dtype == (torch.float32 if "lora" in name else torch.bfloat16)
        assert "lora" not in name or 3 in weight.shape
    assert transformer.dtype == torch.bfloat16


def test_it_begins_as_the_model_was() -> None:
    transformer = tiny_wan_transformer()
    given = {
        "hidden_states": torch.randn(1, 16, 2, 4, 4),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 3, 16),
    }
    before = transformer(**given).sample
    add_lora(transformer, PipelineConfig())
    assert torch.equal(transformer(**given).sample, before)


def test_targets_are_endings_of_names() -> None:
    names = add_lora(tiny_wan_transformer(2), PipelineConfig(targets=["attn2.to_q", "ffn.net.2"]))  # type: ignore[arg-type]
    assert names == [
        *("blocks.0.attn2.to_q", "blocks.0.ffn.net.2"),
        *("blocks.1.attn2.to_q", "blocks.1.ffn.net.2"),
    ]
    # net.2 is no ending of net.22, nor o_q of to_q.
    with pytest.raises(ValueError, match=r"targets holds 'o_q', .* attn1\.to_k, .* are allowed"):
        add_lora(tiny_wan_transformer(), PipelineConfig(targets=("o_q",)))


def test_settings_say_the_scale() -> None:
    transformer: Any = tiny_wan_transformer(1)
    add_lora(transformer, PipelineConfig(rank=4, alpha=6.0))
    weights = {name: x for name, x in transformer.state_dict().items() if ".lora_" in name}
    state, told = lora_state(transformer, weights)
    assert (told["r"], told["lora_alpha"]) == (4, 6.0)
    assert transformer.blocks[0].attn1.to_q.scaling == {"default": 1.5}
    assert set(state) == {
        f"blocks.0.attn1.{name}.lora_{side}.weight" for name in PROJECTIONS for side in "AB"
    }
