"""The sound of a video file, written as AAC."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from freqformer._optional import needs

with needs("train"):
    import av

LAYOUTS = {1: "mono", 2: "stereo"}
"""By number of channels."""
SAMPLES_AT_ONCE = 1 << 16


@dataclass(frozen=True, eq=False)
class Sound:
    """What is heard from the first frame on.

    Raises:
        ValueError: for samples of another shape or dtype, or a rate that AAC doesn't have.
    """

    samples: Tensor
    """Floats (channels, samples), one channel or two, in [-1, 1]; louder ones are clipped."""
    rate: int
    """Samples a second."""

    def __post_init__(self) -> None:
        shape = tuple(self.samples.shape)
        floats = self.samples.is_floating_point()
        if len(shape) != 2 or shape[0] not in LAYOUTS or not shape[1] or not floats:
            raise ValueError(
                f"samples are {self.samples.dtype} {shape}; floats (channels, samples) of one "
                "channel or two are allowed, with a sample at least"
            )
        if not bool(self.samples.isfinite().all()):
            raise ValueError(
                "samples hold NaN or infinity; finite ones are allowed: try another dtype, or look "
                "at the model"
            )
        rates = sorted(av.Codec("aac", "w").audio_rates or ())
        if self.rate not in rates:
            raise ValueError(
                f"rate is {self.rate!r} samples a second; one of {', '.join(map(str, rates))} is "
                "allowed, as AAC has them: resample"
            )

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return self.samples.shape[1] / self.rate


def sound_stream(container: Any, sound: Sound) -> Any:
    """A stream of this sound in a container that nothing was written into yet."""
    stream = container.add_stream("aac", rate=sound.rate)
    stream.codec_context.layout = LAYOUTS[len(sound.samples)]
    return stream


def sound_packets(stream: Any, sound: Sound) -> Iterator[Any]:
    """The encoded sound, piece by piece."""
    layout = LAYOUTS[len(sound.samples)]
    samples = sound.samples.detach().to("cpu", torch.float32).clamp(-1, 1)
    for first in range(0, samples.shape[1], SAMPLES_AT_ONCE):
        piece = samples[:, first : first + SAMPLES_AT_ONCE].contiguous().numpy()
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=layout)
        frame.sample_rate = sound.rate
        frame.pts = first
        yield from stream.encode(frame)
    yield from stream.encode(None)
