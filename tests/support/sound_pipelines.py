"""Whole small pipelines of the families whose videos have sound: LTX-2 and MiniMax-H3."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers.models.autoencoders.autoencoder_kl_ltx2 import AutoencoderKLLTX2Video
from diffusers.models.autoencoders.autoencoder_kl_ltx2_audio import AutoencoderKLLTX2Audio
from diffusers.models.autoencoders.autoencoder_kl_minimax_h3 import AutoencoderKLMiniMaxH3
from diffusers.models.autoencoders.autoencoder_kl_minimax_h3_audio import (
    AutoencoderKLMiniMaxH3Audio,
)
from diffusers.models.transformers.transformer_ltx2 import LTX2VideoTransformer3DModel
from diffusers.models.transformers.transformer_minimax_h3 import MiniMaxH3Transformer3DModel
from diffusers.modular_pipelines.minimax_h3.modular_blocks_minimax_h3 import (
    MiniMaxH3CoreDenoiseStep,
    MiniMaxH3DecodeStep,
)
from diffusers.modular_pipelines.modular_pipeline import (
    ModularPipelineBlocks,
    SequentialPipelineBlocks,
)
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam, OutputParam
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.pipeline_ltx2 import LTX2Pipeline
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.schedulers.scheduling_minimax_h3 import MiniMaxH3Scheduler
from tests.support.family_parts import CHANNELS, LANGUAGE, quiet
from tests.support.tiny_pipelines import TEXT_CHANNELS, tiny_tokenizer
from transformers import Gemma3Config, Gemma3ForConditionalGeneration


def ltx2_vae() -> AutoencoderKLLTX2Video:
    """That keeps frames and makes 2 x 2 pixels of a latent."""
    return AutoencoderKLLTX2Video(
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
    ).eval()


def ltx2_sound() -> dict[str, Any]:
    """What makes sound of latents."""
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
    return {"audio_vae": audio_vae.eval(), "vocoder": vocoder.eval()}


def ltx2_transformer() -> LTX2VideoTransformer3DModel:
    """Of version 2.0."""
    return LTX2VideoTransformer3DModel(
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
    ).eval()


def ltx2_text() -> dict[str, Any]:
    """What reads a prompt."""
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
    return {
        "text_encoder": Gemma3ForConditionalGeneration(language).eval(),
        "tokenizer": tiny_tokenizer(),
        "connectors": connectors.eval(),
    }


def ltx2() -> LTX2Pipeline:
    """Of version 2.0, with sound."""
    torch.manual_seed(0)
    return quiet(
        LTX2Pipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=ltx2_vae(),
            transformer=ltx2_transformer(),
            **ltx2_sound(),
            **ltx2_text(),
        )
    )


class ReadPrompt(ModularPipelineBlocks):
    """In place of the 50 layers of the language model that reads prompts: a number a word."""

    model_name = "minimax-h3"

    @property
    def inputs(self) -> list[InputParam]:
        """What it takes."""
        return [InputParam("prompt", required=True, type_hint=str)]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """What it gives."""
        return [OutputParam("prompt_embeds"), OutputParam("text_token_tags")]

    def __call__(self, components: Any, state: Any) -> Any:
        """As every step of a modular pipeline."""
        block = self.get_block_state(state)
        words = [sum(map(ord, word)) for word in block.prompt.split()]
        angles = torch.tensor(words)[:, None] * torch.arange(1, TEXT_CHANNELS + 1)
        block.prompt_embeds = angles.sin()[None]
        block.text_token_tags = torch.full((len(words),), components.text_tag, dtype=torch.long)
        self.set_block_state(state, block)
        return components, state


class MiniMaxH3Steps(SequentialPipelineBlocks):
    """From a prompt to video and sound."""

    model_name = "minimax-h3"
    block_classes: ClassVar = [ReadPrompt, MiniMaxH3CoreDenoiseStep, MiniMaxH3DecodeStep]
    block_names: ClassVar = ["text_encoder", "denoise", "decode"]


def minimax_h3_parts(
    video: dict[str, Any] | None = None, sound: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What makes videos and sound, of which the VAE makes 32 x 32 pixels of a token.

    Args:
        video, sound: of the VAEs, in place of the usual.
    """
    torch.manual_seed(0)
    statistics = {"latents_mean": [0.0] * 32, "latents_std": [1.0] * 32}
    vae = AutoencoderKLMiniMaxH3(
        layers_per_block=1,
        norm_num_groups=2,
        decoder_num_layers=1,
        decoder_num_attention_heads=1,
        decoder_attention_head_dim=16,
        decoder_num_register_tokens=1,
        decoder_ffn_mult=1,
        **{"block_out_channels": (4,) * 6, **(video or {})},
    )
    audio_vae = AutoencoderKLMiniMaxH3Audio(
        encoder_dim=4,
        encoder_rates=(2, 2),
        latent_dim=32,
        num_attention_heads=1,
        decoder_dim=8,
        decoder_rates=(2, 2),
        decoder_kernel_sizes=(4, 4),
        resblock_kernel_sizes=(3,),
        resblock_dilation_sizes=((1,),),
        **{"sampling_rate": 8000, **statistics, **(sound or {})},
    )
    transformer = MiniMaxH3Transformer3DModel(
        num_attention_heads=2,
        attention_head_dim=32,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=1,
        ffn_dim=32,
        in_channels=24,
        audio_in_channels=32,
        text_dim=TEXT_CHANNELS,
        freq_dim=32,
        time_embed_hidden_dim=32,
        time_embed_dim=16,
        rope_freq_dim=4,
    )
    return {
        "transformer": transformer.eval(),
        "scheduler": MiniMaxH3Scheduler(),
        "audio_scheduler": MiniMaxH3Scheduler(shift=3.0),
        "vae": vae.eval(),
        "audio_vae": audio_vae.eval(),
    }


def minimax_h3() -> Any:
    """The modular pipeline."""
    pipe = MiniMaxH3Steps().init_pipeline()
    pipe.update_components(**minimax_h3_parts())
    return quiet(pipe)
