"""Whole pipelines of HunyuanVideo and its kin with small random weights."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.guiders.classifier_free_guidance import ClassifierFreeGuidance
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import AutoencoderKLHunyuanVideo
from diffusers.models.autoencoders.autoencoder_kl_hunyuanvideo15 import AutoencoderKLHunyuanVideo15
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTransformer3DModel
from diffusers.models.transformers.transformer_hunyuan_video15 import (
    HunyuanVideo15Transformer3DModel,
)
from diffusers.models.transformers.transformer_hunyuan_video_framepack import (
    HunyuanVideoFramepackTransformer3DModel,
)
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import HunyuanVideoPipeline
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video_framepack import (
    HunyuanVideoFramepackPipeline,
)
from diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5 import HunyuanVideo15Pipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from tests.support.family_parts import CHANNELS, LANGUAGE, quiet
from tests.support.tiny_pipelines import TEXT_CHANNELS, WORDS, tiny_tokenizer
from transformers import (
    ByT5Tokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5EncoderModel,
)


def hunyuan_vae() -> AutoencoderKLHunyuanVideo:
    """That makes 8 x 8 pixels and 4 frames of a latent."""
    levels = 4
    return AutoencoderKLHunyuanVideo(
        latent_channels=CHANNELS,
        down_block_types=("HunyuanVideoDownBlock3D",) * levels,
        up_block_types=("HunyuanVideoUpBlock3D",) * levels,
        block_out_channels=(8,) * levels,
        layers_per_block=1,
        norm_num_groups=4,
    ).eval()


def hunyuan_parts() -> dict[str, Any]:
    """What HunyuanVideo and FramePack share."""
    torch.manual_seed(0)
    clip = CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
    )
    second = tiny_tokenizer()
    second.model_max_length = 77
    return {
        "text_encoder": LlamaModel(LlamaConfig(**LANGUAGE)).eval(),
        "tokenizer": tiny_tokenizer(),
        "text_encoder_2": CLIPTextModel(clip).eval(),
        "tokenizer_2": second,
        "vae": hunyuan_vae(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=7.0),
    }


HUNYUAN: dict[str, Any] = {
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_refiner_layers": 1,
    "text_embed_dim": TEXT_CHANNELS,
    "pooled_projection_dim": 8,
    "rope_axes_dim": (4, 6, 6),
}


def hunyuan_video() -> HunyuanVideoPipeline:
    """Text to video."""
    parts = hunyuan_parts()
    transformer = HunyuanVideoTransformer3DModel(**HUNYUAN)
    return quiet(HunyuanVideoPipeline(**parts, transformer=transformer.eval()))


def framepack() -> HunyuanVideoFramepackPipeline:
    """Image to video, window by window."""
    parts = hunyuan_parts()
    seen = SiglipVisionConfig(
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    transformer = HunyuanVideoFramepackTransformer3DModel(
        **HUNYUAN, has_image_proj=True, image_proj_dim=8, has_clean_x_embedder=True
    )
    return quiet(
        HunyuanVideoFramepackPipeline(
            **parts,
            transformer=transformer.eval(),
            image_encoder=SiglipVisionModel(seen).eval(),
            feature_extractor=SiglipImageProcessor(size={"height": 8, "width": 8}),
        )
    )


def hunyuan_video15() -> HunyuanVideo15Pipeline:
    """Text to video; its language model's template is 108 words of nothing, which are cut off."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ 'a ' * 108 }}{{ messages[-1]['content'] }}"
    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=CHANNELS,
        block_out_channels=(16, 16),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
        downsample_match_channel=False,
        upsample_match_channel=False,
    )
    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=2 * CHANNELS + 1,
        out_channels=CHANNELS,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_refiner_layers=1,
        text_embed_dim=TEXT_CHANNELS,
        text_embed_2_dim=8,
        image_embed_dim=12,
        rope_axes_dim=(4, 6, 6),
        target_size=16,
        task_type="t2v",
    )
    turns = {"rope_type": "default", "type": "default", "mrope_section": [1, 1, 2]}
    glyphs = T5Config(vocab_size=384, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    pipe = quiet(
        HunyuanVideo15Pipeline(
            text_encoder=Qwen2_5_VLTextModel(
                Qwen2_5_VLTextConfig(**LANGUAGE, rope_scaling=turns)
            ).eval(),
            tokenizer=tokenizer,  # type: ignore[arg-type]
            transformer=transformer.eval(),
            vae=vae.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
            text_encoder_2=T5EncoderModel(glyphs).eval(),
            tokenizer_2=ByT5Tokenizer(),
            guider=ClassifierFreeGuidance(guidance_scale=1.0),
        )
    )
    pipe.tokenizer_max_length = 16
    pipe.tokenizer_2_max_length = 8
    pipe.vision_num_semantic_tokens = 8
    return pipe
