"""A run of two ranks of which one dies before its fourth step: `torchrun ... FOLDER`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from tests.support.shared_runs import CLIPS, config_of
from torch import Tensor

from freqformer.training.loop import train


class Clips:
    """Ends the process of rank 1 at a clip of the fourth step, which is loaded ahead."""

    def __init__(self) -> None:
        self.asked = 0

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> Tensor:
        self.asked += 1
        if os.environ["RANK"] == "1" and self.asked > 3 * CLIPS:
            (folder / "died").touch()
            os._exit(7)
        return torch.full((3, 3, 12, 20), index / 64)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    train(config_of(folder, "cp"), clips=Clips())
