"""A trained dense model with banded attention and no training: the plug-in's preset, tables that
were calibrated, and published patterns at the same attention FLOPs.

    PYTHONPATH=src:. python -m benchmarks.training_free --model FOLDER [--train-steps 2000]
    [--max-seconds 280] [--output FOLDER]

FOLDER holds a saved pipeline with dense attention; where there is none, the dense model of the
quality study is trained there first. Generated videos are compared with dense attention's at the
same seeds, at several densities of the banded steps, once with all steps banded and once with the
first fifth dense. Rows are kept in FOLDER/rows.json as they come: with --max-seconds a call stops
between two of them, and the same call goes on. The last one writes training_free_density.json,
which `python -m benchmarks.training_free_report` puts on the page.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from benchmarks.quality.data import Draw, draw_scenes
from benchmarks.quality.runs import Run
from benchmarks.quality.sizes import STUDY, Size
from benchmarks.quality.trainer import Trainer
from benchmarks.training_free_methods import (
    Method,
    Threshold,
    by_table,
    guarded,
    preset_table,
    single_patterns,
    tile_means,
)
from torch import Tensor

from benchmarks import record
from freqformer.calibration import CalibrationSettings, PipelineChoice, calibrate_pipeline
from freqformer.calibration.measure import Attended, LayerWatch
from freqformer.generation.likeness import psnr, ssim
from freqformer.models.pipeline import FreqFormerPipeline
from freqformer.training.seeding import derive_seed

DENSITIES = (0.5, 0.3, 0.2, 0.1, 0.05)
"""Attention FLOPs of a banded step relative to dense."""
STARTS = (0.0, 0.2)
"""Shares of the steps, from the first, that stay dense."""
NAME = "training_free_density"
CHUNK_STEPS = 32
"""Training steps whose clips are drawn at once."""
CALIBRATION_SEED = 1000
"""Of the first video of a calibration: none that is compared."""


@dataclass(frozen=True)
class Amount:
    """How much is run."""

    size: Size = STUDY
    calibration_videos: int = 4
    calibration_steps: int = 10
    videos: int = 8
    """That are compared."""
    steps: int = 30
    """Of the sampler."""
    train_steps: int = 2000
    densities: tuple[float, ...] = DENSITIES


def train(folder: Path, amount: Amount, device: torch.device) -> None:
    """Train the dense model of the quality study and save it as a pipeline."""
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
        FlowMatchEulerDiscreteScheduler,
    )

    size, began = amount.size, time.perf_counter()
    trainer = Trainer(Run("dense", 0, amount.train_steps, size), device)
    step: Callable[[], None] = trainer.captured() if device.type == "cuda" else trainer.advance
    for first in range(0, amount.train_steps, CHUNK_STEPS):
        clips = _clips(CHUNK_STEPS * size.batch, first, amount, device)
        noise = Draw(derive_seed("training-free noise", first), device).normal(*clips.shape)
        batches = list(zip(clips.split(size.batch), noise.split(size.batch), strict=True))
        for clip, drawn in batches[: amount.train_steps - first]:
            trainer.clip.copy_(clip)
            trainer.noise.copy_(drawn)
            step()
    loss = float(trainer.losses[-100:].mean())
    print(
        f"trained for {amount.train_steps} steps in {time.perf_counter() - began:.0f} s, loss "
        f"{loss:.4f}",
        flush=True,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    FreqFormerPipeline(transformer=trainer.model.eval(), scheduler=scheduler).save_pretrained(
        folder
    )


def _clips(
    count: int, index: int, amount: Amount, device: torch.device, *, held_out: bool = False
) -> Tensor:
    frames, side, _ = amount.size.video
    seed = derive_seed("training-free clips", held_out, index)
    return draw_scenes(count, seed, device, held_out=held_out, frames=frames, side=side).video


class Comparison:
    """Dense attention's videos, to compare a method's with."""

    def __init__(self, pipeline: FreqFormerPipeline, amount: Amount) -> None:
        self.pipeline = pipeline
        self.amount = amount
        self.videos = self._videos()

    def of(self, method: Method) -> dict[str, Any]:
        """PSNR and SSIM of the videos, mean and each."""
        with method.on(self.pipeline.transformer):
            videos = self._videos()
        decibels = psnr(videos, self.videos)
        return {
            "about": method.about,
            "density": method.density,
            "heads": None if method.table is None else method.table.shares,
            "psnr": float(decibels.mean()),
            "ssim": float(ssim(videos, self.videos).mean()),
            "psnr_by_video": decibels.tolist(),
        }

    def _videos(self) -> Tensor:
        """Videos of seeds 0, 1, ..., (videos, F, C, H, W) in [0, 1]."""
        generators = [torch.Generator().manual_seed(seed) for seed in range(self.amount.videos)]
        options = {
            "num_inference_steps": self.amount.steps,
            "batch_size": len(generators),
            "output_type": "pt",
        }
        return self.pipeline(
            *self.amount.size.video, generator=generators, **options
        ).frames.float()  # type: ignore[arg-type]


class Methods:
    """Every method at a density and a start; what they need is measured once.

    Args:
        pipeline: dense.
        amount: how much is measured.
        folder: of the calibrations' states.
    """

    def __init__(self, pipeline: FreqFormerPipeline, amount: Amount, folder: Path) -> None:
        self.pipeline = pipeline
        self.amount = amount
        self.folder = folder
        model = pipeline.transformer
        layer = model.attentions[0]
        self.grid = amount.size.grid
        self.shape = (len(model.attentions), layer.num_heads, layer.head_dim)
        self._calibrations: dict[float, PipelineChoice] = {}
        self._means: dict[float, list[tuple[Tensor, Tensor]]] = {}

    def of(self, density: float, start: float) -> dict[str, Callable[[], Method]]:
        """By name; each is made when it is called."""
        patterns = single_patterns(density, self.grid, self.shape)

        def pattern(name: str) -> Method:
            found = patterns[name]
            assert found.table is not None
            return by_table(guarded(found.table, start), found.density, found.about)

        return {
            "preset": lambda: self._preset(density, start),
            "calibrated": lambda: self._calibrated(density, start),
            **{name: lambda name=name: pattern(name) for name in patterns},
            "threshold": lambda: self._threshold(density, start),
        }

    def _preset(self, density: float, start: float) -> Method:
        table, delivered = preset_table(density, self.grid, self.shape)
        return by_table(guarded(table, start), delivered, "the plug-in without a table")

    def _calibrated(self, density: float, start: float) -> Method:
        if start not in self._calibrations:
            amount = self.amount
            frames, height, width = amount.size.video
            self._calibrations[start] = calibrate_pipeline(
                self.pipeline,
                [{}] * amount.calibration_videos,
                density=density,
                call={"num_frames": frames, "height": height, "width": width},
                settings=CalibrationSettings(
                    steps=amount.calibration_steps, start_percent=start, seed=CALIBRATION_SEED
                ),
                state=self.folder / f"calibration-{start}",
                progress=False,
            )
        choice = self._calibrations[start].calibration.choose(density)
        (table,) = choice.tables.values()
        return by_table(table, choice.density, "calibrate_pipeline")

    def _threshold(self, density: float, start: float) -> Method:
        if start not in self._means:
            self._means[start] = self._measured_means(start)
        method = Threshold(self._means[start], self.grid, density, start)
        about = f"tiles up to a summed weight of {method.threshold:.4f}, and means of the others"
        return Method(method.on, method.density, about)

    def _measured_means(self, start: float) -> list[tuple[Tensor, Tensor]]:
        """Tile means of every layer in the banded steps of one dense video."""
        model = self.pipeline.transformer
        means: list[tuple[Tensor, Tensor]] = []

        def keep(attended: Attended) -> None:
            if start <= 0 or float(attended.timestep.max()) < 1 - start:
                means.append(tile_means(attended))

        hooks = [hook for layer in model.attentions for hook in LayerWatch(layer, keep).hooks()]
        generator = torch.Generator().manual_seed(CALIBRATION_SEED)
        self.pipeline(
            *self.amount.size.video,
            generator=generator,
            num_inference_steps=self.amount.calibration_steps,
            output_type="latent",
        )
        for hook in hooks:
            hook.remove()
        return means


def run(
    folder: Path, amount: Amount, device: torch.device, dtype: torch.dtype, until: float
) -> dict[str, Any] | None:
    """Everything, as JSON-able values; None where time ended before the last row.

    Args:
        folder: of the dense pipeline, rows and states.
        amount: how much is run.
        device, dtype: of the model.
        until: on the clock of `time.perf_counter`; no row begins later.
    """
    if not (folder / "model_index.json").is_file():
        train(folder, amount, device)
    pipeline = FreqFormerPipeline.from_pretrained(folder).to(device, dtype)
    pipeline.set_progress_bar_config(disable=True)
    methods = Methods(pipeline, amount, folder)
    kept = folder / "rows.json"
    rows: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.is_file() else {}
    comparison = None
    for start in STARTS:
        for density in amount.densities:
            own = rows.setdefault(f"{start}/{density}", {})
            for name, make in methods.of(density, start).items():
                if name in own:
                    continue
                if time.perf_counter() > until:
                    return None
                comparison = comparison or Comparison(pipeline, amount)
                own[name] = comparison.of(make())
                kept.write_text(json.dumps(rows))
                print(
                    f"{start:4} {density:5} {name:18}{own[name]['density']:9.4f}"
                    f"{own[name]['psnr']:9.2f}{own[name]['ssim']:8.4f}  {own[name]['about']}",
                    flush=True,
                )
    layers, heads, head_dim = methods.shape
    return {
        "model": {"layers": layers, "heads": heads, "head_dim": head_dim, "dtype": str(dtype)},
        "tokens": methods.grid.num_tokens,
        "train_steps": amount.train_steps,
        "sampler_steps": amount.steps,
        "videos": amount.videos,
        "calibration": {"videos": amount.calibration_videos, "steps": amount.calibration_steps},
        "rows": {
            str(start): {str(density): rows[f"{start}/{density}"] for density in amount.densities}
            for start in STARTS
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", type=Path, required=True, help="a saved dense pipeline, or where to train one"
    )
    parser.add_argument("--train-steps", type=int, default=Amount.train_steps)
    parser.add_argument("--max-seconds", type=float, default=float("inf"))
    parser.add_argument("--output", type=Path, default=record.RESULTS)
    parser.add_argument("--commit", help="of this checkout, where git isn't there to ask")
    given = parser.parse_args()
    until = time.perf_counter() + given.max_seconds
    if not torch.cuda.is_available():
        raise SystemExit("this takes a GPU: at the study's size a CPU would need days")
    amount = replace(Amount(), train_steps=given.train_steps)
    results = run(given.model, amount, torch.device("cuda"), torch.bfloat16, until)
    if results is None:
        print(f"stopped after {given.max_seconds:g} s; the same call goes on")
        return
    print(record.save(NAME, results, given.output, given.commit))


if __name__ == "__main__":
    main()
