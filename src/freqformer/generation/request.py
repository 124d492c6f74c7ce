"""What is asked of a pipeline, and what it took to make."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from freqformer._optional import needs
from freqformer.media import Sound

LARGEST_BYTE = 255
SOUND_FPS = 24
"""Of pipelines with sound that take no frame rate."""


@dataclass(frozen=True)
class Request:
    """One video; what is None is left to the pipeline."""

    prompt: str
    num_frames: int | None
    height: int | None
    width: int | None
    seed: int
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    image: Path | None = None
    """Of image to video."""
    fps: float | None = None
    """Frames a second, which sound is made for; None leaves it to the pipeline."""

    def arguments(self, pipe: Any) -> dict[str, Any]:
        """The arguments of a call of this pipeline.

        Args:
            pipe: one of diffusers', modular ones included.

        Raises:
            ValueError: for what this pipeline doesn't take, or an image that it needs.
        """
        taken = _taken(pipe)
        given = {
            "prompt": self.prompt,
            "num_frames": self.num_frames,
            "height": self.height,
            "width": self.width,
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            "negative_prompt": self.negative_prompt,
            "image": self.image,
        }
        asked = {name: value for name, value in given.items() if value is not None}
        unknown = [name for name in asked if name not in taken]
        if unknown:
            raise ValueError(
                f"{unknown[0]} is {asked[unknown[0]]!r}, and a {type(pipe).__name__} takes none: "
                "leave it out, or load another pipeline"
            )
        if self.image is not None:
            asked["image"] = _opened(self.image)
        elif taken.get("image"):
            raise ValueError(
                f"image is None, and a {type(pipe).__name__} needs one: name its file, --image FILE"
            )
        if self.fps is not None and gives_sound(pipe):
            asked |= self._rate(pipe, taken)
        asked["generator"] = torch.Generator().manual_seed(self.seed)
        return asked | ({"output_type": "pt"} if "output_type" in taken else {})

    def _rate(self, pipe: Any, taken: dict[str, bool]) -> dict[str, Any]:
        """What tells a pipeline how long its sound lasts."""
        if "frame_rate" in taken:
            return {"frame_rate": self.fps}
        if self.fps != SOUND_FPS:
            raise ValueError(
                f"fps is {self.fps}, and a {type(pipe).__name__} makes its sound for {SOUND_FPS} "
                "frames a second; that is allowed: leave it out"
            )
        return {}


@dataclass
class Made:
    """A video, and what it took."""

    frames: Tensor
    """uint8 (F, H, W, 3) on the host."""
    seconds: float
    """From the prompt to the frames."""
    peak_bytes: int | None
    """Most memory of the GPU that was held; None on a CPU."""
    call_seconds: list[float] = field(default_factory=list)
    """Of each call of a transformer."""
    sound: Sound | None = None
    """On the host; None of pipelines that make none."""

    @property
    def call_median(self) -> float:
        """Seconds of the median call of a transformer, 0 without one: what is compiled at first
        doesn't count."""
        return median(self.call_seconds) if self.call_seconds else 0.0


def make(
    pipe: Any, request: Request, transformers: dict[str, nn.Module], device: torch.device
) -> Made:
    """Run the pipeline once.

    Args:
        pipe: one of diffusers', modular ones included.
        request: what is asked of it.
        transformers: whose calls are timed.
        device: that computes.

    Raises:
        ValueError: for what the pipeline doesn't take or give.
    """
    arguments = request.arguments(pipe)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    with _timed(transformers.values(), device) as calls:
        began = time.perf_counter()
        if not hasattr(pipe, "blocks"):
            given = pipe(**arguments)
            frames = frames_of(given.frames)
            sound = _sound(given.audio, _vocoder_rate(pipe)) if gives_sound(pipe) else None
        elif gives_sound(pipe):
            given = pipe(**arguments, output=["videos", "audio", "sampling_rate"])
            frames = frames_of(given["videos"])
            sound = _sound(given["audio"], given["sampling_rate"])
        else:
            frames = frames_of(pipe(**arguments, output="videos"))
            sound = None
        seconds = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else None
    return Made(frames, seconds, peak, calls, sound)


def gives_sound(pipe: Any) -> bool:
    """Whether the pipeline's videos have sound."""
    if hasattr(pipe, "blocks"):
        return "audio" in {found.name for found in pipe.blocks.outputs}
    return getattr(pipe, "vocoder", None) is not None


def _vocoder_rate(pipe: Any) -> int:
    return pipe.vocoder.config.output_sampling_rate


def _sound(audio: Tensor, rate: int) -> Sound:
    """The sound of the first video, from (B, channels, samples)."""
    return Sound(audio[0].detach().float().cpu(), int(rate))


def frames_of(video: Any) -> Tensor:
    """The first video of what a pipeline gave, uint8 (F, H, W, 3).

    Args:
        video: (B, F, C, H, W) tensor or (B, F, H, W, C) array of values in [0, 1], or lists of
            them or of pictures.

    Raises:
        ValueError: for anything else.
    """
    first = video[0]
    if isinstance(first, list | tuple):
        first = numpy.stack([numpy.asarray(picture) for picture in first])
        if first.dtype == numpy.uint8:
            return torch.from_numpy(first)
    unit = first.float().cpu() if isinstance(first, Tensor) else torch.as_tensor(first).float()
    if isinstance(first, Tensor) and unit.ndim == 4 and unit.shape[1] == 3:
        unit = unit.permute(0, 2, 3, 1)
    if unit.ndim != 4 or unit.shape[-1] != 3 or bool(unit.isnan().any()):
        raise ValueError(
            f"the pipeline gave {tuple(unit.shape)}, of which {int(unit.isnan().sum())} are NaN; "
            "finite frames of three colours are allowed: try another dtype, or look at the model"
        )
    return (unit.clamp(0, 1) * LARGEST_BYTE).round().to(torch.uint8).contiguous()


def _taken(pipe: Any) -> dict[str, bool]:
    """Names of what a pipeline takes, and whether it must have it."""
    if hasattr(pipe, "blocks"):
        return {found.name: bool(found.required) for found in pipe.blocks.inputs if found.name}
    parameters = inspect.signature(type(pipe).__call__).parameters.values()
    return {found.name: found.default is inspect.Parameter.empty for found in parameters}


def _opened(path: Path) -> Any:
    with needs("train"):
        from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(path).convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"--image is {path}, which is no picture ({error})") from error


@contextmanager
def _timed(transformers: Any, device: torch.device) -> Iterator[list[float]]:
    """Seconds of every call of these models inside the block."""
    seconds: list[float] = []
    began: list[float] = []

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def before(*_: Any) -> None:
        began.append(now())

    def after(*_: Any) -> None:
        seconds.append(now() - began.pop())

    hooks = []
    for transformer in transformers:
        hooks += [
            transformer.register_forward_pre_hook(before),
            transformer.register_forward_hook(after),
        ]
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()
