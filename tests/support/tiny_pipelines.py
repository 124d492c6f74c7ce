"""Whole pipelines of diffusers with small random weights, as they lie in a folder of the hub."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

WORDS = ("<pad>", "</s>", "<unk>", "a", "the", "lighthouse", "in", "storm", "cat")
TEXT_CHANNELS = 16


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Of single words."""
    model = WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def tiny_text_encoder() -> UMT5EncoderModel:
    """Of those words."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(WORDS),
            d_model=TEXT_CHANNELS,
            d_kv=8,
            d_ff=16,
            num_layers=1,
            num_heads=2,
            pad_token_id=0,
            eos_token_id=1,
        )
    ).eval()


def tiny_wan_transformer(layers: int = 3, **changed: Any) -> WanTransformer3DModel:
    """With 2 heads of 16."""
    sizes: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": TEXT_CHANNELS,
        "freq_dim": 32,
        "ffn_dim": 32,
        "num_layers": layers,
        "rope_max_seq_len": 64,
    }
    return WanTransformer3DModel(**sizes | changed).eval()


def tiny_wan_vae() -> AutoencoderKLWan:
    """That makes 8 x 8 pixels and 4 frames of a latent."""
    return AutoencoderKLWan(
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    ).eval()


def tiny_wan_pipeline(experts: int = 1) -> WanPipeline:
    """A `WanPipeline`, with two experts as Wan 2.2 has them: the second below a noise of 0.875."""
    torch.manual_seed(0)
    pipe = WanPipeline(
        tokenizer=tiny_tokenizer(),  # type: ignore[arg-type]
        text_encoder=tiny_text_encoder(),
        vae=tiny_wan_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        transformer=tiny_wan_transformer(),
        transformer_2=tiny_wan_transformer() if experts == 2 else None,
        boundary_ratio=0.875 if experts == 2 else None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: Any, *, seed: int = 0, **changed: Any) -> torch.Tensor:
    """A video of 17 frames of 128 x 160 pixels, 400 tokens: (1, F, C, H, W) in [0, 1]."""
    options: dict[str, Any] = {
        "height": 128,
        "width": 160,
        "num_frames": 17,
        "num_inference_steps": 5,
        "guidance_scale": 3.0,
        "max_sequence_length": 16,
        "output_type": "pt",
        "generator": torch.Generator().manual_seed(seed),
    }
    return torch.as_tensor(pipe("a lighthouse in the storm", **options | changed).frames)
