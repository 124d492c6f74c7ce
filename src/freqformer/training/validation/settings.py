"""What a run is measured by while it trains, as a frozen record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from freqformer._validate import check_number, check_whole, shown

MOST = 100_000
MOST_STEPS = 10**12
MOST_GUIDANCE = 1000.0
MOST_SEED = 2**63 - 1


@dataclass(frozen=True)
class ValidationConfig:
    """Loss on clips that are held out, and videos of fixed prompts; of runs on a cache.

    Args:
        every_steps: steps from one time to the next; the last step is measured too.
        held_out: clips of the cache that are not trained on, chosen by the run's seed.
        levels: noise levels, above 0 and up to 1, at which their loss is measured.
        prompts: of videos, one each; '' for one without prompt, or of a cache without text.
        num_inference_steps: denoising steps of a video.
        guidance_scale: of a video.
        seed: of the videos' noise, and of that of the held-out clips.
    """

    every_steps: int = 500
    held_out: int = 0
    levels: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    prompts: tuple[str, ...] = ()
    num_inference_steps: int = 30
    guidance_scale: float = 4.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole("every_steps", self.every_steps, 1, most=MOST_STEPS)
        check_whole("held_out", self.held_out, 0, most=MOST)
        check_whole("num_inference_steps", self.num_inference_steps, 1, most=MOST)
        check_number("guidance_scale", self.guidance_scale, 0, MOST_GUIDANCE)
        check_whole("seed", self.seed, 0, most=MOST_SEED)
        for name in ("levels", "prompts"):
            # JSON gives lists; records compare by value.
            object.__setattr__(self, name, _as_tuple(name, getattr(self, name)))
        for level in self.levels:
            check_number("levels", level, 1e-6, 1)
        for prompt in self.prompts:
            if not isinstance(prompt, str):
                raise ValueError(f"prompts holds {shown(prompt)}; texts are allowed")

    @property
    def asks(self) -> bool:
        """Whether anything is measured or made."""
        return self.held_out > 0 or bool(self.prompts)


def _as_tuple(name: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple) or (name == "levels" and not value):
        raise ValueError(f"{name} is {shown(value)}; a list is allowed")
    return tuple(value)
