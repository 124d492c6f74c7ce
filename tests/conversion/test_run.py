"""Conversions from folder to folder: a resumed run is the straight one bit for bit, its adapter
works in a fresh process, and what doesn't fit is refused."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import HunyuanVideoPipeline
from diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5 import HunyuanVideo15Pipeline
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from safetensors.torch import load_file
from tests.support.tiny_conversions import (
    make_dense_folder,
    make_wan_folder,
    tiny_conversion,
)
from tests.support.tiny_finetuning import make_pipeline_and_cache

from freqformer.conversion import ConvertConfig, convert
from freqformer.conversion.config import StagesConfig, WeightsConfig
from freqformer.integrations.diffusers import enable_frequency_attention
from freqformer.integrations.diffusers.converted.windows import WindowSettings, window_config
from freqformer.models.pipeline import FreqFormerPipeline
from freqformer.training.checkpoint import CheckpointError
from freqformer.training.config import CheckpointConfig
from freqformer.training.report import StepReport, TrainingError

GENERATE = """
import sys, torch
from diffusers import WanPipeline
from freqformer.integrations.diffusers import enable_frequency_attention
folder, adapter, target = sys.argv[1:]
pipe = WanPipeline.from_pretrained(folder)
pipe.set_progress_bar_config(disable=True)
enable_frequency_attention(pipe, adapter=adapter)
made = pipe(
    "a cat", height=48, width=64, num_frames=5, num_inference_steps=2, guidance_scale=1.0,
    max_sequence_length=8, output_type="pt", generator=torch.Generator().manual_seed(0),
).frames
torch.save(torch.as_tensor(made), target)
"""


class Killed(Exception):
    """In place of a kill: nothing of the run gets to tidy up but its contexts."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wan_folder(tmp_path_factory.mktemp("wan"))


def steps_of(config: ConvertConfig, until: int | None = None) -> list[tuple[int, float]]:
    """Step and loss of every step of a call, which ends as if killed after `until`."""
    found: list[tuple[int, float]] = []

    def note(report: StepReport) -> None:
        found.append((report.step, report.loss))
        if report.step == until:
            raise Killed

    try:
        convert(config, on_step=note)
    except Killed:
        assert until is not None
    return found


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Of all files of a result."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.rglob("*.safetensors")):
        found |= load_file(path)
    return found


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(x, b[name]) for name, x in a.items())


def test_a_resumed_run_is_the_straight_one(folder: Path, tmp_path: Path) -> None:
    every = CheckpointConfig(every_steps=2)
    straight = tiny_conversion(folder, output=str(tmp_path / "straight"), checkpoint=every)
    wanted = steps_of(straight)
    assert [step for step, _ in wanted] == list(range(1, 9))
    broken = replace(straight, output=str(tmp_path / "broken"))
    first = steps_of(broken, until=3)
    second = steps_of(broken, until=7)
    third = steps_of(broken)
    assert first[:2] + second[:4] + third == wanted
    assert [second[0][0], third[0][0]] == [3, 7]
    results = [tensors(Path(run.output) / "adapter") for run in (straight, broken)]
    assert same(*results)


def test_the_adapter_gives_the_same_video_in_a_fresh_process(folder: Path, tmp_path: Path) -> None:
    adapter = convert(tiny_conversion(folder, output=str(tmp_path / "out")))
    assert adapter == tmp_path / "out" / "adapter"
    assert not list(tmp_path.rglob("*.bin")) + list(tmp_path.rglob("*.pt"))
    pipe = WanPipeline.from_pretrained(folder / "wan")
    pipe.set_progress_bar_config(disable=True)
    options: dict[str, Any] = {
        "height": 48,
        "width": 64,
        "num_frames": 5,
        "num_inference_steps": 2,
        "guidance_scale": 1.0,
        "max_sequence_length": 8,
        "output_type": "pt",
    }

    def video() -> torch.Tensor:
        draw = torch.Generator().manual_seed(0)
        made: Any = pipe("a cat", **options, generator=draw)
        return torch.as_tensor(made.frames)

    dense = video()
    with enable_frequency_attention(pipe, adapter=adapter):
        here = video()
    assert torch.equal(video(), dense)
    assert float((here - dense).abs().max()) > 1e-4
    there = tmp_path / "there.tensor"
    command = [sys.executable, "-c", GENERATE, str(folder / "wan"), str(adapter), str(there)]
    subprocess.run(command, check=True, capture_output=True)
    # To rounding: two processes may have other numbers of threads.
    torch.testing.assert_close(torch.load(there, weights_only=True), here, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pattern", ["window", "tiles"])
@pytest.mark.parametrize("change", ["lora", "full"])
def test_an_own_model_becomes_a_pipeline_of_its_pattern(
    tmp_path: Path, change: Any, pattern: Any
) -> None:
    make_dense_folder(tmp_path)
    weights = WeightsConfig(change, 4 if change == "lora" else None)
    stages = StagesConfig(2, 2, 1, falling=0.5, levels=2)
    config = tiny_conversion(tmp_path, "dense", weights=weights, stages=stages)
    config = replace(config, windows=replace(config.windows, density=0.7, pattern=pattern))
    broken = replace(config, output=str(tmp_path / "broken"))
    wanted = steps_of(config)
    every = replace(broken, checkpoint=CheckpointConfig(every_steps=1))
    assert steps_of(every, until=3)[:2] + steps_of(every) == wanted
    result = tmp_path / "out" / "pipeline"
    assert same(tensors(result), tensors(tmp_path / "broken" / "pipeline"))
    model = FreqFormerPipeline.from_pretrained(result).transformer
    assert model.frequency_config.routing == "timestep"
    grid = model.grid_for((2, 24, 32))
    seen = window_config(grid, config.windows)
    for name in ("tile", "window", "mid_tiles", "summary_tokens", "compression"):
        assert getattr(model.frequency_config, name) == getattr(seen, name), name
    assert {layer.bands for layer in model.attentions} == {(config.windows.band,) * 2}
    assert all(layer.summary_queries is None for layer in model.attentions)
    dense = FreqFormerPipeline.from_pretrained(tmp_path / "dense").transformer
    gates = [layer.gates.weight for layer in model.attentions]
    assert all(bool(gate.any()) for gate in gates)
    torch.testing.assert_close(model.proj_in.weight, dense.proj_in.weight, rtol=0, atol=0)


def test_a_checkpoint_of_another_run_is_refused(folder: Path, tmp_path: Path) -> None:
    config = tiny_conversion(
        folder, output=str(tmp_path / "out"), stages=StagesConfig(1, 0, falling=0.0)
    )
    convert(config)
    for changed, told in (
        ({"weights": WeightsConfig(rank=8)}, r"weights\.rank was 4 and is 8"),
        ({"stages": StagesConfig(2, 0)}, r"stages\.layer_steps was 1 and is 2"),
        ({"checkpoint": CheckpointConfig(resume=False)}, "resume is False"),
    ):
        with pytest.raises(CheckpointError, match=told):
            convert(replace(config, **changed))


def test_a_loss_that_is_not_finite_ends_the_run_with_the_clips_name(
    folder: Path, tmp_path: Path
) -> None:
    config = tiny_conversion(folder, output=str(tmp_path / "out"))
    wild = replace(config, optimizer=replace(config.optimizer, learning_rate=10.0, warmup_steps=0))
    steps = StagesConfig(0, 50, falling=0.0)
    with pytest.raises(TrainingError, match=r"is inf|is nan"):
        convert(replace(wild, stages=steps, windows=replace(wild.windows, density=0.5)))


@pytest.mark.parametrize(
    ("kind", "loader"),
    [("hunyuan", HunyuanVideoPipeline), ("hunyuan-1.5", HunyuanVideo15Pipeline)],
)
def test_hunyuan_video_learns_from_a_cache(tmp_path: Path, kind: str, loader: Any) -> None:
    """Its text by two encoders is in the cache."""
    make_pipeline_and_cache(tmp_path, kind, size=(128, 160))
    config = replace(
        tiny_conversion(tmp_path),
        pipeline=str(tmp_path / "pipe"),
        stages=StagesConfig(1, 1, 1),
        windows=WindowSettings(0.9, (2, 4, 4), 64),
    )
    assert [step for step, _ in steps_of(config)] == [1, 2, 3]
    pipe = loader.from_pretrained(tmp_path / "pipe")
    with enable_frequency_attention(pipe, adapter=str(tmp_path / "out" / "adapter")) as attention:
        assert len(attention.layer_names) == 2
