"""Small random pipelines of diffusers that were trained on flows, and one step of their loops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import AutoencoderKLHunyuanVideo
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTransformer3DModel
from diffusers.models.transformers.transformer_ltx import LTXVideoTransformer3DModel
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import HunyuanVideoPipeline
from diffusers.pipelines.ltx.pipeline_ltx import LTXPipeline
from diffusers.pipelines.wan.pipeline_wan_i2v import WanImageToVideoPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from tests.support.tiny_encoders import tiny_encoder, tiny_tokenizer, tiny_vae
from tests.support.tiny_pipelines import (
    TEXT_CHANNELS,
    tiny_text_encoder,
    tiny_wan_transformer,
    tiny_wan_vae,
)
from tests.support.tiny_pipelines import tiny_tokenizer as tiny_wan_tokenizer
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaModel,
)

IMAGE_SIDE = 28

LANGUAGE: dict[str, Any] = {
    "vocab_size": 16,
    "hidden_size": TEXT_CHANNELS,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
"""Of text encoders, for `tiny_tokenizer`."""


@dataclass(frozen=True)
class PipelineStep:
    """What one step of a pipeline's loop computed."""

    latents: Tensor
    """As the loop holds them before the step, packed for LTX."""
    timestep: Tensor
    velocity: Tensor
    """What the scheduler was given."""
    after: Tensor
    """The latents after the step."""
    sigmas: tuple[float, float]
    """Noise levels before and after."""


def steps_of(pipe: Any, **options: Any) -> list[PipelineStep]:
    """The steps of a call without guidance; the pipeline is used up."""
    seen: list[PipelineStep] = []
    scheduler = pipe.scheduler
    own = scheduler.step

    def step(velocity: Tensor, timestep: Tensor, latents: Tensor, **given: Any) -> Any:
        made = own(velocity, timestep, latents, **given)
        place = len(seen)
        sigmas = (float(scheduler.sigmas[place]), float(scheduler.sigmas[place + 1]))
        seen.append(PipelineStep(latents, timestep, velocity, made[0], sigmas))
        return made

    scheduler.step = step
    arguments: dict[str, Any] = {
        "height": 32,
        "width": 48,
        "num_frames": 9,
        "num_inference_steps": 3,
        "guidance_scale": 1.0,
        "max_sequence_length": 16,
        "output_type": "latent",
        "generator": torch.Generator().manual_seed(0),
    }
    pipe(**arguments | options)
    return seen


def tiny_image_pipeline(
    *, expand_timesteps: bool = False, image_dim: int | None = None
) -> WanImageToVideoPipeline:
    """Image to video: of Wan 2.2 TI2V where timesteps are expanded, of Wan 2.1 where images are
    embedded, else of Wan 2.2 A14B."""
    torch.manual_seed(0)
    channels = 16 if expand_timesteps else 36
    pipe = WanImageToVideoPipeline(
        tokenizer=tiny_wan_tokenizer(),  # type: ignore[arg-type]
        text_encoder=tiny_text_encoder(),
        vae=tiny_wan_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        transformer=tiny_wan_transformer(in_channels=channels, image_dim=image_dim),
        image_encoder=None if image_dim is None else tiny_image_encoder(image_dim),  # type: ignore[arg-type]
        image_processor=None if image_dim is None else tiny_image_processor(),  # type: ignore[arg-type]
        expand_timesteps=expand_timesteps,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_image_encoder(channels: int) -> CLIPVisionModel:
    """Of 28 x 28 pixels, in 5 tokens."""
    config = CLIPVisionConfig(
        hidden_size=channels,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=IMAGE_SIDE,
        patch_size=IMAGE_SIDE // 2,
    )
    return CLIPVisionModel(config).eval()


def tiny_image_processor() -> CLIPImageProcessor:
    """For it."""
    side = {"height": IMAGE_SIDE, "width": IMAGE_SIDE}
    return CLIPImageProcessor(size={"shortest_edge": IMAGE_SIDE}, crop_size=side)


def tiny_ltx_transformer() -> LTXVideoTransformer3DModel:
    """With 2 heads of 24, for latents of 4 channels."""
    return LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=24,
        cross_attention_dim=48,
        num_layers=2,
        caption_channels=TEXT_CHANNELS,
    ).eval()


def tiny_hunyuan_pipeline(*, guidance_embeds: bool = True) -> HunyuanVideoPipeline:
    """A `HunyuanVideoPipeline`, whose VAE makes 8 x 8 pixels and 4 frames of a latent."""
    torch.manual_seed(0)
    pipe = HunyuanVideoPipeline(
        text_encoder=LlamaModel(LlamaConfig(**LANGUAGE)).eval(),
        tokenizer=tiny_tokenizer(),  # type: ignore[arg-type]
        text_encoder_2=CLIPTextModel(CLIPTextConfig(**LANGUAGE)).eval(),
        tokenizer_2=tiny_tokenizer(),  # type: ignore[arg-type]
        transformer=HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            text_embed_dim=TEXT_CHANNELS,
            pooled_projection_dim=TEXT_CHANNELS,
            rope_axes_dim=(4, 6, 6),
            guidance_embeds=guidance_embeds,
        ).eval(),
        vae=AutoencoderKLHunyuanVideo(
            latent_channels=4,
            block_out_channels=(8, 8, 8, 8),  # type: ignore[arg-type]
            layers_per_block=1,
            norm_num_groups=4,
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_ltx_pipeline() -> LTXPipeline:
    """An `LTXPipeline`, whose VAE makes 4 x 4 pixels and 4 frames of a latent."""
    torch.manual_seed(0)
    pipe = LTXPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=tiny_vae("ltx"),
        text_encoder=tiny_encoder("t5").eval(),
        tokenizer=tiny_tokenizer(),  # type: ignore[arg-type]
        transformer=tiny_ltx_transformer(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
