"""A tiny video VAE and tiny text encoders of random weights, in the folders that a hub has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLLTXVideo, AutoencoderKLWan
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Model,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)
from transformers.utils import logging

WORDS = ("a", "red", "blue", "ball", "flies", "left", "right", "slowly")
ENCODER_CHANNELS = 16


def tiny_vae(name: str = "wan", seed: int = 0) -> Any:
    """4 latent channels; Wan's codes 4 k + 1 frames and 8 x 8 pixels, LTX' 4 k + 1 and 4 x 4."""
    torch.manual_seed(seed)
    if name == "wan":
        return AutoencoderKLWan(
            base_dim=3,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[0.1 * k for k in range(4)],
            latents_std=[1 + 0.5 * k for k in range(4)],
        )
    vae = AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
        scaling_factor=0.7,
    )
    vae.latents_mean.copy_(torch.randn(4))
    vae.latents_std.copy_(torch.rand(4) + 0.5)
    return vae


def tiny_tokenizer(*, ends: bool = True) -> PreTrainedTokenizerFast:
    """One token a word, and one at the end where `ends`."""
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    vocabulary |= {word: len(vocabulary) + place for place, word in enumerate(WORDS)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if ends:
        made.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def tiny_encoder(name: str = "t5", seed: int = 0) -> Any:
    """Of `ENCODER_CHANNELS` channels, for `tiny_tokenizer`."""
    torch.manual_seed(seed)
    t5 = {"vocab_size": 16, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    others: dict[str, Any] = {
        "vocab_size": 16,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "bos_token_id": 1,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    if name == "t5":
        return T5EncoderModel(T5Config(**t5))
    if name == "umt5":
        return UMT5EncoderModel(UMT5Config(**t5))
    if name == "clip":
        return CLIPTextModel(CLIPTextConfig(**others, max_position_embeddings=6))
    return Qwen2Model(Qwen2Config(**others, num_key_value_heads=1))


def save_encoders(folder: Path, vae: str = "wan", text: str = "t5", seed: int = 0) -> Path:
    """A folder with `vae/`, `text_encoder/` and `tokenizer/`, as a pipeline's has them."""
    logging.disable_progress_bar()
    tiny_vae(vae, seed).save_pretrained(folder / "vae")
    tiny_encoder(text, seed).save_pretrained(folder / "text_encoder")
    tiny_tokenizer(ends=text != "qwen2").save_pretrained(folder / "tokenizer")
    return folder
