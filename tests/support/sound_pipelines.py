"""Whole small pipelines of the families whose videos have sound: LTX-2 and MiniMax-H3."""

from __future__ import annotations

import torch
from diffusers.models.autoencoders.autoencoder_kl_ltx2 import AutoencoderKLLTX2Video
from diffusers.models.autoencoders.autoencoder_kl_ltx2_audio import AutoencoderKLLTX2Audio
from diffusers.models.transformers.transformer_ltx2 import LTX2VideoTransformer3DModel
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.pipeline_ltx2 import LTX2Pipeline
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from tests.support.family_parts import CHANNELS, LANGUAGE, quiet
from tests.support.tiny_pipelines import TEXT_CHANNELS, tiny_tokenizer
from transformers import Gemma3Config, Gemma3ForConditionalGeneration


def ltx2() -> LTX2Pipeline:
    """Of version 2.0, whose VAE keeps frames and makes 2 x 2 pixels of a latent; with sound."""
    torch.manual_seed(0)
    audio_vae = AutoencoderKLLTX2Audio(
        base_channels=4,
        output_channels=2,
        ch_mult=(1,),
        num_res_blocks=1,
        in_channels=2,
        resolution=32,
        latent_channels=2,
        mel_bins=8,
    )
    vae = AutoencoderKLLTX2Video(
        latent_channels=CHANNELS,
        block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        layers_per_block=(1,),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatial",),
        upsample_residual=(False,),
        upsample_factor=(1,),
        patch_size=1,
    )
    transformer = LTX2VideoTransformer3DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        num_layers=2,
        caption_channels=TEXT_CHANNELS,
        rope_double_precision=False,
    )
    connectors = LTX2TextConnectors(
        caption_channels=TEXT_CHANNELS,
        text_proj_in_factor=LANGUAGE["num_hidden_layers"] + 1,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=8,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=None,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=8,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None,
        connector_rope_base_seq_len=32,
        rope_double_precision=False,
    )
    vocoder = LTX2Vocoder(
        in_channels=16,
        hidden_channels=16,
        out_channels=2,
        upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3, 5]],
        output_sampling_rate=16000,
    )
    seen = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    }
    language = Gemma3Config(
        text_config={**LANGUAGE, "head_dim": 8, "sliding_window": 16},
        vision_config=seen,
        mm_tokens_per_image=4,
        image_token_index=2,
        boi_token_index=2,
        eoi_token_index=2,
    )
    return quiet(
        LTX2Pipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=vae.eval(),
            audio_vae=audio_vae.eval(),
            text_encoder=Gemma3ForConditionalGeneration(language).eval(),
            tokenizer=tiny_tokenizer(),  # type: ignore[arg-type]
            connectors=connectors.eval(),
            transformer=transformer.eval(),
            vocoder=vocoder.eval(),
        )
    )
