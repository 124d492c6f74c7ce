"""Sizes of the demo."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from freqformer._files import read_json
from freqformer.training.config import ObjectiveConfig, OptimizerConfig

FINE_TUNING_RATE = 3e-3
"""Learning rate where the weights are trained already. After 300 steps on the shipped clip the
video was 23.7 dB similar to it, and 19.4 dB at a third of this rate."""


@dataclass(frozen=True)
class DemoSettings:
    """Sizes of the demo from scratch, chosen so that about two minutes on two CPU cores show the
    clip's content.

    Steps are worth more than size here: large patches make a clip few tokens, so a step is short,
    and small tiles still cut it into 32 tiles, so that the bands' operators leave something out.
    """

    num_frames: int = 16
    height: int = 48
    width: int = 80
    fps: float = 8.0
    model: dict[str, Any] = field(
        default_factory=lambda: {
            "patch_size": [2, 8, 8],
            "num_layers": 3,
            "num_attention_heads": 6,
            "attention_head_dim": 32,
            "frequency": {
                "preset": "paper",
                "tile": [1, 3, 5],
                "mid_tiles": 8,
                "compression": 128,
            },
            "absolute_positions": True,
            "prediction_type": "sample",
        }
    )
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=2.5e-3, warmup_steps=20, weight_decay=0.0
        )
    )
    # Much noise is where a clip has to be known by heart.
    objective: ObjectiveConfig = field(
        default_factory=lambda: ObjectiveConfig(logit_mean=1.2, logit_std=0.8)
    )
    batch_size: int = 1
    max_steps: int = 800
    fine_tuning_steps: int = 300
    """Steps where the weights are trained already."""
    inference_steps: int = 30
    inspect_side: int = 384
    enlarge: int = 4
    """Pixels that are shown for a pixel of the model."""

    @property
    def seconds(self) -> float:
        """Length of a clip."""
        return self.num_frames / self.fps

    @property
    def size(self) -> tuple[int, int, int]:
        """(frames, height, width) of a clip."""
        return (self.num_frames, self.height, self.width)

    def of_model(self, folder: Path) -> DemoSettings:
        """These settings for fine-tuning an exported model: its sizes, and smaller steps than from
        scratch.

        Raises:
            ValueError: for a folder that holds none.
        """
        place = folder / "train.json"
        if not place.is_file():
            raise ValueError(
                f"{folder} holds no exported model; give a folder that `freqformer export` wrote"
            )
        record = read_json(place, remedy="export the model again")
        sizes = {name: record["data"][name] for name in ("num_frames", "height", "width", "fps")}
        optimizer = replace(self.optimizer, learning_rate=FINE_TUNING_RATE, ema_decay=0.98)
        return replace(
            self,
            model=record["model"],
            optimizer=optimizer,
            max_steps=self.fine_tuning_steps,
            **sizes,
        )
