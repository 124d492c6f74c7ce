"""Training on a GPU: clips are drawn there, and a run goes on where it stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("av")
pytest.importorskip("diffusers")

from freqformer.training.config import DataConfig, RunConfig, TrainConfig
from freqformer.training.loader import OnDeviceLoader
from freqformer.training.loop import train
from freqformer.training.photographs import PhotographClips

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
PHOTOGRAPHS = Path(__file__).parents[2] / "benchmarks" / "quality" / "photographs"
SIZE = {"num_frames": 8, "height": 32, "width": 48}


def test_a_gpu_draws_the_clips_of_a_cpu() -> None:
    source = PhotographClips(PHOTOGRAPHS, 0, **SIZE)
    loader = OnDeviceLoader(source, iter(range(8)), seed=0, device=torch.device("cuda"))
    drawn = loader.take(8).clip
    expected = torch.stack([source.load(index).clip for index in range(8)])
    difference = (drawn.cpu() - expected).abs()
    # A place at a pixel's border may fall to either side of it.
    assert float(difference.mean()) < 1e-4
    assert float((difference > 0.02).double().mean()) < 1e-3


def test_a_run_in_two_parts_is_a_run_in_one(tmp_path: Path) -> None:
    losses: dict[str, list[float]] = {"whole": [], "parts": []}
    for name, parts in (("whole", (None,)), ("parts", (1e-3, None))):
        for seconds in parts:
            config = TrainConfig(
                output=str(tmp_path / name),
                model={
                    "patch_size": [2, 4, 4],
                    "num_layers": 2,
                    "num_attention_heads": 2,
                    "attention_head_dim": 32,
                },
                data=DataConfig(photographs=str(PHOTOGRAPHS), fps=8, **SIZE),
                run=RunConfig(
                    max_steps=4,
                    stop_after_seconds=seconds,
                    batch_size=4,
                    precision="bf16",
                    progress=False,
                ),
            )
            train(config, on_step=lambda report, name=name: losses[name].append(report.loss))
    assert len(losses["whole"]) == 4
    assert losses["parts"] == pytest.approx(losses["whole"], rel=1e-3)
