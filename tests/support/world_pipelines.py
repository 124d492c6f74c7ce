"""Whole small pipelines of Cosmos and Helios."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.autoencoders.autoencoder_kl_cosmos import AutoencoderKLCosmos
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.transformer_cosmos import CosmosTransformer3DModel
from diffusers.models.transformers.transformer_helios import HeliosTransformer3DModel
from diffusers.pipelines.cosmos.pipeline_cosmos2_5_predict import Cosmos2_5_PredictBasePipeline
from diffusers.pipelines.cosmos.pipeline_cosmos2_video2world import Cosmos2VideoToWorldPipeline
from diffusers.pipelines.cosmos.pipeline_cosmos_text2world import CosmosTextToWorldPipeline
from diffusers.pipelines.helios.pipeline_helios import HeliosPipeline
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.schedulers.scheduling_helios import HeliosScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from tests.support.family_parts import LANGUAGE, quiet
from tests.support.tiny_encoders import tiny_encoder
from tests.support.tiny_pipelines import (
    TEXT_CHANNELS,
    tiny_text_encoder,
    tiny_tokenizer,
    tiny_wan_vae,
)
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration


class NothingIsUnsafe(ModelMixin, ConfigMixin):
    """In place of the guardrail, which is a package and models of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))

    def check_text_safety(self, _prompt: str) -> bool:
        """Whether a prompt may be used."""
        return True

    def check_video_safety(self, video: Any) -> Any:
        """The video, as it may be shown."""
        return video


def cosmos_transformer(**changed: Any) -> CosmosTransformer3DModel:
    """Without a mask of padding, which takes torchvision."""
    sizes: dict[str, Any] = {
        "in_channels": 16,
        "out_channels": 16,
        "num_attention_heads": 2,
        "attention_head_dim": 24,
        "num_layers": 2,
        "mlp_ratio": 2,
        "text_embed_dim": TEXT_CHANNELS,
        "adaln_lora_dim": 4,
        "max_size": (8, 32, 32),
        "concat_padding_mask": False,
        "extra_pos_embed_type": None,
    }
    return CosmosTransformer3DModel(**sizes | changed).eval()


def cosmos() -> CosmosTextToWorldPipeline:
    """Of version 1, whose VAE makes 8 x 8 pixels and 8 frames of a latent."""
    torch.manual_seed(0)
    vae = AutoencoderKLCosmos(
        latent_channels=16,
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,),
        resolution=64,
        num_layers=1,
        latents_mean=None,
        latents_std=None,
    )
    return quiet(
        CosmosTextToWorldPipeline(
            text_encoder=tiny_encoder("t5").eval(),
            tokenizer=tiny_tokenizer(),  # type: ignore[arg-type]
            transformer=cosmos_transformer(extra_pos_embed_type="learnable"),
            vae=vae.eval(),
            scheduler=EDMEulerScheduler(sigma_max=80.0, sigma_min=0.002, sigma_data=1.0),
            safety_checker=NothingIsUnsafe(),  # type: ignore[arg-type]
        )
    )


def cosmos2() -> Cosmos2VideoToWorldPipeline:
    """Of Predict 2, from a picture."""
    torch.manual_seed(0)
    return quiet(
        Cosmos2VideoToWorldPipeline(
            text_encoder=tiny_encoder("t5").eval(),
            tokenizer=tiny_tokenizer(),  # type: ignore[arg-type]
            transformer=cosmos_transformer(in_channels=17),
            vae=tiny_wan_vae(),
            scheduler=FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
            safety_checker=NothingIsUnsafe(),  # type: ignore[arg-type]
        )
    )


def cosmos25() -> Cosmos2_5_PredictBasePipeline:
    """Of Predict 2.5, from text."""
    torch.manual_seed(0)
    seen = {
        "depth": 1,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_heads": 2,
        "out_hidden_size": 16,
    }
    turns = {"rope_type": "default", "type": "default", "mrope_section": [1, 1, 2]}
    language = Qwen2_5_VLConfig(text_config={**LANGUAGE, "rope_scaling": turns}, vision_config=seen)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[-1]['content'][0]['text'] }}"
    layers = LANGUAGE["num_hidden_layers"]
    return quiet(
        Cosmos2_5_PredictBasePipeline(
            text_encoder=Qwen2_5_VLForConditionalGeneration(language).eval(),
            tokenizer=tokenizer,
            transformer=cosmos_transformer(
                in_channels=17,
                use_crossattn_projection=True,
                crossattn_proj_in_channels=layers * TEXT_CHANNELS,
                encoder_hidden_states_channels=TEXT_CHANNELS,
            ),
            vae=tiny_wan_vae(),
            scheduler=UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
            ),
            safety_checker=NothingIsUnsafe(),  # type: ignore[arg-type]
        )
    )


def helios() -> HeliosPipeline:
    """Of one stage, with scaled keys of the past."""
    torch.manual_seed(0)
    transformer = HeliosTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=16,
        out_channels=16,
        text_dim=TEXT_CHANNELS,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        rope_dim=(8, 8, 8),
        is_amplify_history=True,
    )
    return quiet(
        HeliosPipeline(
            tokenizer=tiny_tokenizer(),  # type: ignore[arg-type]
            text_encoder=tiny_text_encoder(),
            vae=tiny_wan_vae(),
            scheduler=HeliosScheduler(stage_range=[0, 1], stages=1, use_dynamic_shifting=True),
            transformer=transformer.eval(),
        )
    )
