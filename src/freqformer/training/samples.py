"""What training learns from: one sample of a source, and the batch of a forward pass.

Shape legend: B samples, C channels, F frames, H rows, W columns, L text tokens, E their channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from freqformer._renamed import warn_renamed

PIXEL_CHANNELS = 3
"""Channels of what is read from videos and photographs, or drawn: red, green and blue."""


@dataclass(frozen=True)
class BadFile:
    """A file that can't be read, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class TrainingSample:
    """One clip, the text that describes it, and the files that it stands in for."""

    clip: Tensor
    """(C, F, H, W) float32: pixels in [-1, 1], or latents scaled to about 1."""
    prompt_embeds: Tensor | None = None
    """(L, E), floating point; None where no text describes the clip."""
    prompt_attention_mask: Tensor | None = None
    """(L,) bool, true where a text token may be seen; None shows all of them."""
    failures: tuple[BadFile, ...] = ()
    keeps_first: bool = False
    """Whether the model is given the first frame without noise, to go on from."""
    conditions: Mapping[str, Tensor] = field(default_factory=dict)
    """What a pipeline's transformer is told besides, by the names of `VelocityModel`'s
    arguments."""

    @property
    def pixels(self) -> Tensor:
        """The old name of `clip`."""
        warn_renamed("pixels of a clip", "clip of a TrainingSample")
        return self.clip


@dataclass(frozen=True)
class TrainingBatch:
    """What one forward pass takes, noise included."""

    clip: Tensor
    """(B, C, F, H, W) float32."""
    noise: Tensor
    """Standard normal, shaped like the clip."""
    prompt_embeds: Tensor | None = None
    """(B, L, E), floating point."""
    prompt_attention_mask: Tensor | None = None
    """(B, L) bool."""
    keeps_first: Tensor | None = None
    """(B,) bool, true where the first frame is given without noise; None where none is."""
    conditions: Mapping[str, Tensor] = field(default_factory=dict)
    """Of all samples, each (B, ...), floating point."""

    @classmethod
    def of(cls, samples: Sequence[TrainingSample], noise: Sequence[Tensor]) -> TrainingBatch:
        """The batch of these samples and their noise, on the CPU.

        Args:
            samples: one at least, alike in their shapes and in what they hold.
            noise: of every sample, shaped like its clip.

        Raises:
            ValueError: where some samples have text or conditions and others none, or of other
                shapes.
        """
        kept = torch.tensor([sample.keeps_first for sample in samples])
        return cls(
            torch.stack([sample.clip for sample in samples]),
            torch.stack(list(noise)),
            _stacked("prompt_embeds", [sample.prompt_embeds for sample in samples]),
            _stacked("prompt_attention_mask", [sample.prompt_attention_mask for sample in samples]),
            kept if bool(kept.any()) else None,
            _stacked_conditions([sample.conditions for sample in samples]),
        )

    def to(self, device: torch.device, *, non_blocking: bool = False) -> TrainingBatch:
        """The batch with its tensors on a device."""
        return self._each(lambda x: x.to(device, non_blocking=non_blocking))

    def pinned(self) -> TrainingBatch:
        """The batch with tensors of the CPU in pinned memory, from which a GPU copies by itself."""
        return self._each(lambda x: x if x.device.type != "cpu" else x.pin_memory())

    def tensors(self) -> list[Tensor]:
        """Those that it has."""
        return [*self._own().values(), *self.conditions.values()]

    def _each(self, change: Callable[[Tensor], Tensor]) -> TrainingBatch:
        held = {name: change(tensor) for name, tensor in self._own().items()}
        told = {name: change(tensor) for name, tensor in self.conditions.items()}
        return replace(self, conditions=told, **held)

    def _own(self) -> dict[str, Tensor]:
        """Its tensors by name, without the conditions."""
        names = ("clip", "noise", "prompt_embeds", "prompt_attention_mask", "keeps_first")
        return {name: x for name in names if (x := getattr(self, name)) is not None}


def _stacked_conditions(given: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    names = sorted({name for one in given for name in one})
    made = {name: _stacked(name, [one.get(name) for one in given]) for name in names}
    return {name: tensor for name, tensor in made.items() if tensor is not None}


def _stacked(name: str, given: Sequence[Tensor | None]) -> Tensor | None:
    tensors = [one for one in given if one is not None]
    if not tensors:
        return None
    if len(tensors) < len(given):
        raise ValueError(
            f"{name} is there in {len(tensors)} of {len(given)} samples of a batch; all or none "
            "are allowed: give a clip without text the embeddings of an empty one"
        )
    shapes = sorted({tuple(one.shape) for one in tensors})
    if len(shapes) > 1:
        raise ValueError(
            f"{name} has the shapes {shapes} in one batch; one shape is allowed: pad the texts to "
            "one length, and give prompt_attention_mask"
        )
    return torch.stack(tensors)
