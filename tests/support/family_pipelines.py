"""Whole pipelines of every family with small random weights, as they lie in a folder of the hub."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2Transformer3DModel
from diffusers.models.transformers.transformer_wan_animate import WanAnimateTransformer3DModel
from diffusers.models.transformers.transformer_wan_vace import WanVACETransformer3DModel
from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXConditionPipeline
from diffusers.pipelines.skyreels_v2.pipeline_skyreels_v2 import SkyReelsV2Pipeline
from diffusers.pipelines.wan.pipeline_wan_animate import WanAnimatePipeline
from diffusers.pipelines.wan.pipeline_wan_i2v import WanImageToVideoPipeline
from diffusers.pipelines.wan.pipeline_wan_vace import WanVACEPipeline
from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from tests.support import hunyuan_pipelines, sound_pipelines, world_pipelines
from tests.support.family_parts import moving_pictures, picture, quiet
from tests.support.tiny_encoders import tiny_encoder
from tests.support.tiny_pipelines import (
    TEXT_CHANNELS,
    tiny_text_encoder,
    tiny_tokenizer,
    tiny_wan_pipeline,
    tiny_wan_vae,
)
from tests.support.tiny_transformers import ANIMATED
from tests.support.tiny_video_pipelines import tiny_image_pipeline, tiny_ltx_pipeline
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

WAN: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "text_dim": TEXT_CHANNELS,
    "freq_dim": 32,
    "ffn_dim": 32,
    "num_layers": 2,
    "rope_max_seq_len": 64,
}
SIZE: dict[str, Any] = {"height": 128, "width": 160, "num_frames": 17}
"""Of pixels: 5 x 8 x 10 tokens of Wan."""
PROMPT = "a lighthouse in the storm"
PLAIN = {"template": "{}", "crop_start": 0}
"""Of what a language model is told: the prompt alone."""


@dataclass(frozen=True)
class TinyPipeline:
    """A pipeline of one family, and a call of it."""

    make: Callable[[], Any]
    options: dict[str, Any] = field(default_factory=dict)
    """Of its call, beside the prompt."""
    density: float = 0.5
    sound: bool = False
    """Whether its videos have sound."""

    def video(self, pipe: Any) -> Tensor:
        """Frames, as the pipeline gives tensors."""
        return self.run(pipe, "pt", "videos")

    def latents(self, pipe: Any) -> Tensor:
        """What is there before they are decoded."""
        return self.run(pipe, "latent", "latents")

    def run(self, pipe: Any, output_type: str, output: str) -> Tensor:
        """A call of the pipeline: what it gives as `output_type`, or of a modular one `output`."""
        given = {
            "num_inference_steps": 3,
            "generator": torch.Generator().manual_seed(0),
            **self.options,
        }
        if hasattr(pipe, "blocks"):
            return pipe(prompt=PROMPT, output=output, output_type="pt", **given)
        made = pipe(prompt=PROMPT, output_type=output_type, **given).frames
        return made if isinstance(made, Tensor) else made[0]


def wan_parts() -> dict[str, Any]:
    """What Wan's kin have beside their transformers."""
    torch.manual_seed(0)
    return {
        "tokenizer": tiny_tokenizer(),
        "text_encoder": tiny_text_encoder(),
        "vae": tiny_wan_vae(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=5.0),
    }


def wan_image_to_video() -> WanImageToVideoPipeline:
    """Of Wan 2.2 A14B's kind."""
    return tiny_image_pipeline()


def wan_vace() -> WanVACEPipeline:
    """Whose control has 96 channels."""
    parts = wan_parts()
    transformer = WanVACETransformer3DModel(
        **WAN, in_channels=16, out_channels=16, vace_layers=[0], vace_in_channels=96
    )
    return quiet(WanVACEPipeline(**parts, transformer=transformer.eval()))


def wan_animate() -> WanAnimatePipeline:
    """With the smallest encoders of faces and pictures."""
    parts = wan_parts()
    small = {"hidden_size": 8, "projection_dim": 8, "num_hidden_layers": 2}
    encoder = CLIPVisionConfig(
        **small, num_attention_heads=2, image_size=8, intermediate_size=16, patch_size=4
    )
    transformer = WanAnimateTransformer3DModel(
        **WAN,
        in_channels=36,
        latent_channels=16,
        out_channels=16,
        image_dim=8,
        **ANIMATED,
    )
    return quiet(
        WanAnimatePipeline(
            **parts,
            transformer=transformer.eval(),
            image_encoder=CLIPVisionModel(encoder).eval(),
            image_processor=CLIPImageProcessor(
                crop_size={"height": 8, "width": 8}, size={"shortest_edge": 8}
            ),
        )
    )


def skyreels_v2() -> SkyReelsV2Pipeline:
    """Text to video."""
    parts = wan_parts()
    parts["scheduler"] = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    transformer = SkyReelsV2Transformer3DModel(**WAN, in_channels=16, out_channels=16)
    return quiet(SkyReelsV2Pipeline(**parts, transformer=transformer.eval()))


def ltx_condition() -> LTXConditionPipeline:
    """The parts of `tiny_ltx_pipeline`, with the scheduler of 0.9.5 on."""
    parts = tiny_ltx_pipeline().components
    parts["scheduler"] = FlowMatchEulerDiscreteScheduler()
    return quiet(LTXConditionPipeline(**parts))


def cogvideox() -> CogVideoXPipeline:
    """Of version 1.0, whose VAE makes 4 x 4 pixels of a latent."""
    torch.manual_seed(0)
    blocks = 3
    vae = AutoencoderKLCogVideoX(
        latent_channels=4,
        block_out_channels=(8,) * blocks,
        down_block_types=("CogVideoXDownBlock3D",) * blocks,
        up_block_types=("CogVideoXUpBlock3D",) * blocks,
        layers_per_block=1,
        norm_num_groups=2,
    )
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=TEXT_CHANNELS,
        num_layers=2,
        sample_width=40,
        sample_height=32,
        sample_frames=17,
        patch_size=2,
        max_text_seq_length=16,
        use_rotary_positional_embeddings=True,
    )
    return quiet(
        CogVideoXPipeline(
            tokenizer=tiny_tokenizer(),  # type: ignore[arg-type]
            text_encoder=tiny_encoder("t5").eval(),
            vae=vae.eval(),
            transformer=transformer.eval(),
            scheduler=CogVideoXDDIMScheduler(),
        )
    )


PIPELINES: dict[str, TinyPipeline] = {
    "wan": TinyPipeline(tiny_wan_pipeline, {**SIZE, "max_sequence_length": 16}),
    "wan-i2v": TinyPipeline(
        wan_image_to_video, {**SIZE, "image": picture(), "max_sequence_length": 16}
    ),
    "wan-vace": TinyPipeline(
        wan_vace, {**SIZE, "reference_images": picture(), "max_sequence_length": 16}
    ),
    "wan-animate": TinyPipeline(
        wan_animate,
        {
            "image": picture(),
            "pose_video": moving_pictures(17),
            "face_video": moving_pictures(17),
            "height": 128,
            "width": 160,
            "segment_frame_length": 17,
            "max_sequence_length": 16,
        },
    ),
    "skyreels-v2": TinyPipeline(skyreels_v2, {**SIZE, "max_sequence_length": 16}),
    "ltx": TinyPipeline(
        tiny_ltx_pipeline,
        {"height": 32, "width": 64, "num_frames": 17, "max_sequence_length": 16},
    ),
    "ltx-condition": TinyPipeline(
        ltx_condition,
        {
            "image": picture(64, 32),
            "height": 32,
            "width": 64,
            "num_frames": 17,
            "max_sequence_length": 16,
        },
        density=0.7,
    ),
    "cogvideox": TinyPipeline(
        cogvideox,
        {"height": 64, "width": 80, "num_frames": 17, "max_sequence_length": 16},
    ),
    "hunyuan-video": TinyPipeline(
        hunyuan_pipelines.hunyuan_video,
        {**SIZE, "max_sequence_length": 16, "prompt_template": PLAIN},
        0.6,
    ),
    "hunyuan-video-1.5": TinyPipeline(
        hunyuan_pipelines.hunyuan_video15, {"height": 32, "width": 40, "num_frames": 9}, 0.6
    ),
    "minimax-h3": TinyPipeline(
        sound_pipelines.minimax_h3,
        {"height": 128, "width": 160, "num_frames": 124, "num_inference_steps": 4},
        0.8,
        sound=True,
    ),
    "framepack": TinyPipeline(
        hunyuan_pipelines.framepack,
        {
            "image": picture(96, 64),
            "height": 64,
            "width": 96,
            "num_frames": 33,
            "latent_window_size": 9,
            "max_sequence_length": 16,
            "prompt_template": PLAIN,
        },
        0.9,
    ),
    "cosmos": TinyPipeline(
        world_pipelines.cosmos, {**SIZE, "num_frames": 33, "max_sequence_length": 16}
    ),
    "cosmos-2": TinyPipeline(
        world_pipelines.cosmos2, {**SIZE, "image": picture(), "max_sequence_length": 16}
    ),
    "cosmos-2.5": TinyPipeline(world_pipelines.cosmos25, {**SIZE, "max_sequence_length": 16}),
    "helios": TinyPipeline(world_pipelines.helios, {**SIZE, "max_sequence_length": 16}, 0.7),
    "ltx-2": TinyPipeline(
        sound_pipelines.ltx2,
        {
            "height": 32,
            "width": 32,
            "num_frames": 5,
            "max_sequence_length": 16,
            "spatio_temporal_guidance_blocks": [1],
        },
        sound=True,
    ),
}
"""By the name that a folder of it has in the docs' tests."""
