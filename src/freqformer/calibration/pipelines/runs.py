"""Runs of a pipeline on the prompts of a calibration."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from freqformer.calibration.pipelines.settings import CalibrationSettings, Prompts

OURS = ("num_inference_steps", "generator", "output_type", "output", "return_dict")
"""Arguments that a calibration sets itself."""


class Runs:
    """The same videos every time.

    Args:
        pipe: of diffusers, modular ones included, or of this library.
        prompts: what they show.
        call: arguments that all calls share, such as height, width and num_frames.
        settings: steps and seed.

    Raises:
        ValueError: for no prompts, and for arguments that the pipeline doesn't take or that are set
            here.
    """

    def __init__(
        self,
        pipe: Any,
        prompts: Prompts,
        call: Mapping[str, Any],
        settings: CalibrationSettings,
    ) -> None:
        if isinstance(prompts, str | Mapping) or not prompts:
            raise ValueError(
                f"prompts is {prompts!r}; a list of one text at least is allowed, such as "
                '["a lighthouse in a storm"]'
            )
        self._pipe = pipe
        self._settings = settings
        self._calls = [
            {**call, **({"prompt": one} if isinstance(one, str) else one)} for one in prompts
        ]
        taken = taken_by(pipe)
        for name in {name for arguments in self._calls for name in arguments}:
            if name in OURS or name not in taken:
                raise ValueError(
                    f"call holds {name!r}, which a {type(pipe).__name__} doesn't take or the "
                    "calibration sets itself: leave it out"
                )

    @property
    def described(self) -> list[str]:
        """Every call in words, to tell one calibration from another."""
        return [
            repr(sorted((name, _described(value)) for name, value in arguments.items()))
            for arguments in self._calls
        ]

    def __len__(self) -> int:
        return len(self._calls)

    def latents(self, number: int) -> Tensor:
        """What the sampler ends with for one prompt: float32 on the CPU.

        Args:
            number: of the prompt.
        """
        given = {
            **self._calls[number],
            "num_inference_steps": self._settings.steps,
            "generator": torch.Generator().manual_seed(self._settings.seed + number),
        }
        if hasattr(self._pipe, "blocks"):
            found = self._pipe(**given, output="latents")
        else:
            found = self._pipe(**given, output_type="latent").frames
        return torch.as_tensor(found).detach().float().cpu()


def taken_by(pipe: Any) -> set[str]:
    """Names of the arguments of a pipeline's call."""
    if hasattr(pipe, "blocks"):
        return {found.name for found in pipe.blocks.inputs if found.name}
    return set(inspect.signature(type(pipe).__call__).parameters)


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {float(value.double().sum()):.9g}"
    text = repr(value)
    return text if " at 0x" not in text else type(value).__name__
