"""A short video, and a model trained on it for three steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.support.command_line import TINY, run

from freqformer.media import write_video


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    noise = torch.rand(12, 5, 5, 3, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(
        noise.permute(0, 3, 1, 2), (48, 48), mode="bicubic"
    ).permute(0, 2, 3, 1)
    write_video((smooth.clamp(0, 1) * 255).to(torch.uint8), path, 10)
    return path


@pytest.fixture(scope="session")
def trained(video: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    output = run("train", video, "--output", folder, "--steps", 3, *TINY)
    assert f"freqformer sample {folder}" in output
    return folder
