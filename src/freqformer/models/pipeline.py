"""From noise to a video: the flow-matching sampler around the transformer."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.utils.outputs import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from torch import Tensor

from freqformer._files import read_json
from freqformer._validate import check_choice
from freqformer.models.latents import (
    check_latents,
    compression_ratios,
    decode,
    encode,
    latent_size,
)
from freqformer.models.loading import align_parameters, readable, vouch
from freqformer.models.prompts import Asked, GivenText, check_encoder
from freqformer.models.saved import (
    HUB_ARGUMENTS,
    INDEX_NAME,
    REMEDY,
    check_arguments,
    check_pipeline_folder,
    check_schedule,
    check_vae_weights,
)
from freqformer.models.text import ENCODER_FOLDER, TOKENIZER_FOLDER, TextFolders, TextModel
from freqformer.models.transformer import FreqFormerTransformer3DModel

PARTS = ("transformer", "scheduler", "vae", "text_encoder", "tokenizer")
OutputType = Literal["pt", "uint8", "np", "pil", "latent"]


@dataclass
class FreqFormerPipelineOutput(BaseOutput):
    """What the pipeline returns."""

    frames: Any
    """See `FreqFormerPipeline.__call__`."""

    def save(self, path: str | Path, fps: float = 8.0) -> None:
        """Write generated videos as MP4 (H.264), each with a contact sheet (PNG) beside it.

        Args:
            path: ends in .mp4; several videos are numbered, clip-0.mp4, clip-1.mp4.
            fps: frames per second.

        Raises:
            ValueError: for frames of another kind than `output_type="uint8"`, or a file that can't
                be written.
        """
        from freqformer.media import contact_sheet, write_video

        path = Path(path)
        if not isinstance(self.frames, Tensor) or self.frames.ndim != 5:
            raise ValueError(
                "frames is no batch of uint8 videos; generate with output_type='uint8'"
            )
        for index, video in enumerate(self.frames.cpu()):
            target = path if len(self.frames) == 1 else path.with_stem(f"{path.stem}-{index}")
            write_video(video, target, fps)
            contact_sheet(video, target.with_suffix(".png"))


class FreqFormerPipeline(DiffusionPipeline):
    """Generates videos: in pixel space, or in the latent space of a diffusers video VAE.

    Args:
        transformer: predicts the velocity.
        scheduler: flow matching with 1000 training timesteps and a fixed shift.
        vae: decodes latents; None where the transformer was trained on pixels.
        text_encoder: of transformers, one of `freqformer.models.text.ENCODERS`, that the
            transformer was trained with; None where it takes no text, or embeddings only.
        tokenizer: of the text encoder.

    Raises:
        ValueError: for a scheduler of another kind of timesteps, a VAE that is not for video, or a
            text encoder of other channels or without its tokenizer.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components: ClassVar[list[str]] = ["vae", "text_encoder", "tokenizer"]
    transformer: FreqFormerTransformer3DModel
    scheduler: FlowMatchEulerDiscreteScheduler
    vae: Any
    text_encoder: Any
    tokenizer: Any

    def __init__(
        self,
        transformer: FreqFormerTransformer3DModel,
        scheduler: FlowMatchEulerDiscreteScheduler,
        vae: Any = None,
        text_encoder: Any = None,
        tokenizer: Any = None,
    ) -> None:
        super().__init__()
        check_schedule(scheduler.config)
        compression_ratios(vae)
        check_latents(vae, transformer.config["in_channels"])
        check_encoder(text_encoder, tokenizer, transformer.config["cross_attention_dim"])
        self.register_modules(
            transformer=transformer,
            scheduler=scheduler,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
        )
        self.video_processor = VideoProcessor(do_resize=False)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> Any:
        """As diffusers' `DiffusionPipeline.from_pretrained`, from safetensors only; it repeats the
        saved one's videos.

        Nothing that a folder or repository names is imported but classes of this library and of
        diffusers.

        Raises:
            ValueError: for files that are missing, damaged, or of another model; for parts of other
                classes, and for arguments that would run code from the folder.
        """
        place = os.fspath(pretrained_model_name_or_path)
        check_arguments(kwargs)
        kwargs |= {"use_safetensors": True}
        passed = {name for name in PARTS if name in kwargs}
        with readable(place):
            folder = place
            if (
                not os.path.isdir(place) and place.count("/") <= 1
            ):  # a repository; other texts diffusers refuses
                chosen = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
                folder = cls.download(place, use_safetensors=True, **chosen)
            if os.path.isdir(folder):
                check_pipeline_folder(folder, {cls.__name__, "FreqFormerPipeline"}, passed)
                kwargs |= _text_parts(Path(folder), passed, kwargs)
            pipeline = super().from_pretrained(folder, **kwargs)
            if pipeline.vae is not None and "vae" not in passed:
                check_vae_weights(Path(folder) / "vae", pipeline.vae)
        if pipeline.vae is not None:
            align_parameters(pipeline.vae)
        return pipeline

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:  # type: ignore[override]
        """As diffusers' `DiffusionPipeline.save_pretrained`, with manifests of checksums beside the
        files."""
        super().save_pretrained(save_directory, **kwargs)
        vouch(save_directory, "pipeline", self.components)

    @torch.no_grad()
    def __call__(
        self,
        num_frames: int,
        height: int,
        width: int,
        num_inference_steps: int = 30,
        generator: torch.Generator | list[torch.Generator] | None = None,
        batch_size: int = 1,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        output_type: OutputType = "pt",
        prompt: str | list[str] | None = None,
        negative_prompt: str = "",
        guidance_scale: float | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        max_sequence_length: int = 512,
        image: Tensor | None = None,
    ) -> FreqFormerPipelineOutput:
        """Generate videos.

        Args:
            num_frames, height, width: of the video in pixels; multiples of the patch (times the
                VAE's compression).
            num_inference_steps: Euler steps, each one call of the transformer.
            generator: of the starting noise; the same seed gives the same video. One per sample, or
                one for all. Where ranks share the video, that of the first counts.
            batch_size: videos to generate.
            prompt_embeds: text embeddings (batch_size, L, cross_attention_dim), for a model with
                text.
            prompt_attention_mask: bool or 0/1 integers (batch_size, L), true where a text token may
                be seen; None where all may.
            output_type: `pt` float (batch, frames, channels, height, width) in [0, 1]; `uint8` a
                tensor (batch, frames, height, width, channels); `np` and `pil` as diffusers gives
                them; `latent` before decoding, (batch, channels, frames, height, width).
            prompt: what the videos shall show: one text for all, or one a video, whose number is
                then that of the videos. Needs a text encoder.
            negative_prompt: what guidance leads away from.
            guidance_scale: s of v_negative + s * (v_prompt - v_negative); 1 leaves guidance out and
                halves the work. None is 4 for a prompt, and 1 without.
            negative_prompt_embeds, negative_prompt_attention_mask: embeddings (1 or batch_size, L,
                cross_attention_dim) and their mask in place of `negative_prompt`.
            max_sequence_length: tokens of a prompt at most.
            image: the first frame, uint8 (height, width, 3), of a model that learned to go on from
                one (`data.first_frame` of training); None for none.

        Returns: an object with `frames`.

        Raises:
            ValueError: for a size, option or text that does not fit, naming the argument.
        """
        check_choice("output_type", output_type, get_args(OutputType))
        counts = {"num_frames": num_frames, "height": height, "width": width}
        _check_counts(
            counts | {"num_inference_steps": num_inference_steps, "batch_size": batch_size}
        )
        _check_generator(generator)
        asked = Asked(
            prompt=prompt,
            negative_prompt=negative_prompt,
            embeds=GivenText(prompt_embeds, prompt_attention_mask),
            negative=GivenText(negative_prompt_embeds, negative_prompt_attention_mask, "negative_"),
            guidance_scale=guidance_scale,
            most_tokens=max_sequence_length,
        )
        batch_size = asked.check(batch_size, self.transformer.config["cross_attention_dim"])
        size = latent_size((num_frames, height, width), self.vae)
        self.transformer.grid_for(size)  # refuses what the patch doesn't divide, before any work
        device, dtype = self._execution_device, self.transformer.dtype
        latents = self._noise(
            (batch_size, self.transformer.config["in_channels"], *size), generator
        )
        first = None if image is None else self._first_frame(image, height, width)
        text = asked.conditions(batch_size, self.text_encoder, self.tokenizer).to(device, dtype)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        # Without it the scheduler looks its place up on the host at every step.
        self.scheduler.set_begin_index(0)
        for timestep in self.progress_bar(self.scheduler.timesteps):  # type: ignore[misc]
            if first is not None:
                latents[:, :, :1] = first
            given = text.repeated(latents.to(dtype))
            velocity = self.transformer(
                given, timestep.expand(len(given)), text.embeds, text.mask, return_dict=False
            )[0]
            guided = text.guided(velocity.float())
            latents = self.scheduler.step(guided, timestep, latents, return_dict=False)[0]  # type: ignore[arg-type]
        if first is not None:
            latents[:, :, :1] = first
        frames = self._frames(latents, output_type)
        self.maybe_free_model_hooks()
        return FreqFormerPipelineOutput(frames=frames)

    def _noise(self, shape: tuple[int, ...], generator: Any) -> Tensor:
        """Where generation starts, float32 (B, C, F, H, W), the same where ranks share the
        video."""
        noise = randn_tensor(
            shape, generator=generator, device=self._execution_device, dtype=torch.float32
        )
        context = self.transformer.context
        return noise if context is None else context.same(noise)

    def _first_frame(self, image: Any, height: int, width: int) -> Tensor:
        """A picture as the model sees it, (1, C, 1, H, W) float32 on the pipeline's device."""
        from freqformer.media import to_unit

        shape = tuple(image.shape) if isinstance(image, Tensor) else None
        if shape != (height, width, 3) or image.dtype != torch.uint8:
            what = f"{image.dtype} {shape}" if shape is not None else type(image).__name__
            raise ValueError(
                f"image is {what}; a uint8 tensor {(height, width, 3)} is allowed, the first frame:"
                " resize and crop it to the video's size"
            )
        clip = to_unit(image[None])[None].to(self._execution_device)
        return clip if self.vae is None else encode(clip.to(self.vae.dtype), self.vae).mean

    def _frames(self, latents: Tensor, output_type: OutputType) -> Any:
        if output_type == "latent":
            return latents
        video = latents if self.vae is None else decode(latents, self.vae)
        if output_type == "uint8":
            from freqformer.media import from_unit

            return torch.stack([from_unit(clip) for clip in video])
        return self.video_processor.postprocess_video(video.float(), output_type=output_type)


def _check_counts(counts: dict[str, Any]) -> None:
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} is {count!r}; an integer >= 1 is allowed")


def _check_generator(generator: Any) -> None:
    every = generator if isinstance(generator, list) else [generator]
    if not all(one is None or isinstance(one, torch.Generator) for one in every):
        raise ValueError(
            f"generator is {generator!r}; a torch.Generator, a list of one a video, or None is "
            "allowed: "
            "make it with torch.Generator().manual_seed(seed)"
        )


def _text_parts(folder: Path, passed: set[str], arguments: dict[str, Any]) -> dict[str, Any]:
    """The text encoder and tokenizer of a folder that has them, unless both are passed: loaded
    here, since diffusers would go on with random weights where some are missing."""
    index = read_json(folder / INDEX_NAME, remedy=REMEDY)
    if index.get("text_encoder", [None, None]) == [None, None] or "text_encoder" in passed:
        return {}
    dtype = arguments.get("torch_dtype", arguments.get("dtype"))
    if isinstance(dtype, dict):
        dtype = dtype.get("text_encoder", dtype.get("default"))
    folders = TextFolders(folder / ENCODER_FOLDER, folder / TOKENIZER_FOLDER)
    model = TextModel.load(folders, dtype if isinstance(dtype, torch.dtype) else torch.float32)
    return {"text_encoder": model.encoder, "tokenizer": model.tokenizer}
