"""The steps of the demo, each from files to files."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from freqformer._files import write_json
from freqformer.analysis.figures import energies_figure, labelled_grid
from freqformer.analysis.spectra import BAND_NAMES, Patch, Spectrum, band_frames, clip_spectrum
from freqformer.config import Band, FreqFormerConfig
from freqformer.media import VideoError, probe_video, read_clip, to_unit, write_video

if TYPE_CHECKING:
    from freqformer.models.pipeline import FreqFormerPipeline

ENERGIES = "band_energies.json"
INSPECTED = ("band_energies.png", ENERGIES, "bands.mp4")
"""What `inspect_video` writes."""
MOST_FPS = 24.0
"""Frames per second that are looked at: more would not be told apart, and cost memory."""
LEAST_FPS = 1.0
"""Frames per second at which a slide show is looked at."""


def inspect_video(
    video: Path,
    folder: Path,
    *,
    start: float = 0,
    seconds: float = 5,
    side: int = 384,
    patch: Patch,
) -> Spectrum:
    """Write band_energies.png, band_energies.json and bands.mp4 of a part of a video.

    Args:
        video: the file.
        folder: for the results; made if need be.
        start, seconds: the part; it ends early where the video does. One that is cut off ends after
            the last frame that can be decoded.
        side: longest side in pixels that the video is reduced to; never enlarged.
        patch: (frames, rows, columns) of pixels in a token.

    Raises:
        VideoError: for a video that can't be read, is damaged within the part, ends before `start`,
            or is smaller than a token.
    """
    info = probe_video(video)
    # Where the rate varies, the mean one would leave out frames of the fast parts.
    fps = min(max(info.peak_fps, LEAST_FPS), MOST_FPS)
    frames = int(min(seconds, info.duration - start) * fps + 1e-6) // patch[0] * patch[0]
    scale = min(side / max(info.height, info.width), 1.0)
    height, width = (
        round(extent * scale) // step * step
        for extent, step in zip((info.height, info.width), patch[1:], strict=True)
    )
    if min(frames, height, width) < 1:
        raise VideoError(
            f"{video} lasts {info.duration:.2f} s and has {info.height} x {info.width} pixels; "
            "less than one token is left "
            f"from {start:g} s on: start earlier, take more seconds or a smaller patch"
        )
    clip = to_unit(
        read_clip(info, start=start, num_frames=frames, fps=fps, height=height, width=width)
    )
    spectrum = clip_spectrum(clip, FreqFormerConfig(), patch)
    energies_figure(spectrum, fps, folder / "band_energies.png")
    pictures, (mid, high) = band_frames(spectrum)
    labels = ("input", "low band", f"mid band, × {mid:.1f}", f"high band, × {high:.1f}")
    write_video(labelled_grid(pictures, labels), folder / "bands.mp4", fps)
    record = {
        "seconds": [frame / fps for frame in spectrum.first_frames],
        "shares": dict(zip(BAND_NAMES, spectrum.shares.T.tolist(), strict=True)),
        "total_shares": dict(zip(BAND_NAMES, spectrum.total_shares, strict=True)),
    }
    write_json(folder / ENERGIES, record)
    return spectrum


@dataclass(frozen=True)
class Generated:
    """A generated video, and what the heads did meanwhile."""

    frames: Tensor
    """uint8 (F, H, W, 3)."""
    allocations: Tensor
    """Bands, int64 (steps, layers, heads)."""
    low_weights: Tensor | None
    """What soft routing adds to the weight of LOW, float32 (steps, layers, heads); None for other
    routing."""
    timesteps: list[float]
    """Noise level of every step in [0, 1]."""
    seconds: float
    """Time it took."""


def generate(
    pipeline: FreqFormerPipeline, size: tuple[int, int, int], *, steps: int, seed: int
) -> Generated:
    """Generate one video and note the band of every head at every step, and the weight of LOW where
    routing is soft.

    Args:
        pipeline: of a frequency model.
        size: (frames, height, width) in pixels.
        steps: denoising steps.
        seed: of the starting noise.
    """
    allocations, weights, timesteps = [], [], []
    soft = all(layer.config.weighs and not layer.exact for layer in pipeline.transformer.attentions)

    def note(module: torch.nn.Module, inputs: tuple) -> None:
        timesteps.append(float(inputs[1][0]) / 1000)

    def look(module: torch.nn.Module, inputs: tuple, output: object) -> None:
        allocations.append(
            torch.stack(
                [bands[0] for bands in pipeline.transformer.allocations if bands is not None]
            )
        )
        if soft:
            weights.append(
                torch.stack(
                    [
                        x[0, :, Band.LOW]
                        for x in pipeline.transformer.routing_logits
                        if x is not None
                    ]
                )
            )

    hooks = [
        pipeline.transformer.register_forward_pre_hook(note),
        pipeline.transformer.register_forward_hook(look),
    ]
    began = time.perf_counter()
    try:
        generator = torch.Generator().manual_seed(seed)
        made = pipeline(*size, num_inference_steps=steps, generator=generator, output_type="uint8")
    finally:
        for hook in hooks:
            hook.remove()
    seconds = time.perf_counter() - began
    low_weights = torch.stack(weights).float().cpu() if soft else None
    return Generated(
        made.frames[0], torch.stack(allocations).cpu(), low_weights, timesteps, seconds
    )
