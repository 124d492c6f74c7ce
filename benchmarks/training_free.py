"""A trained dense model with banded attention and no training: the plug-in's preset, tables that
were calibrated, and published patterns at the same attention FLOPs.

    PYTHONPATH=src:. python -m benchmarks.training_free --model FOLDER [--train-steps 2000]
    [--train-seconds 230] [--max-seconds 280] [--resume FILE] [--output FOLDER]

FOLDER holds a saved pipeline with dense attention, such as dense/pipeline in the folder of
`benchmarks.conversion`; where there is none, the dense model of the quality study is trained there
first. Generated videos are compared with dense attention's at the
same seeds, at several densities of the banded steps, once with all steps banded and once with the
first fifth dense. Every row is written to training_free_density.json as it comes, those that tell
most first, and --resume goes on from that file. `python -m benchmarks.training_free_report` puts it
on the page.

--resume needs FOLDER too, for its weights. In files of at most 15 MiB it travels by

    tar c -C FOLDER . | split -b 15M - dense.part
    cat dense.part* | tar x -C FOLDER
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import ceil, inf
from pathlib import Path
from typing import Any

import torch
from benchmarks.training_free_methods import (
    CUBES,
    NUM_BUCKETS,
    Method,
    Threshold,
    by_expected_error,
    by_table,
    guarded,
    preset_table,
    single_patterns,
    tile_means,
    within_tolerance,
)
from benchmarks.training_free_model import TRAINED, Amount, drawn_clips, train, weights_digest
from torch import Tensor

from benchmarks import record
from freqformer.calibration import (
    Calibration,
    CalibrationSettings,
    Candidates,
    PipelineChoice,
    calibrate,
    calibrate_pipeline,
)
from freqformer.calibration.measure import Attended, LayerWatch
from freqformer.generation.likeness import psnr, ssim
from freqformer.models.pipeline import FreqFormerPipeline
from freqformer.training_free.schedule import KNEE

STARTS = (0.0, 0.2)
"""Shares of the steps, from the first, that stay dense."""
TIERS = (
    ("preset", "preset_constant", "calibrated", "calibrated_on_clips"),
    ("vsa_selection", "threshold", "radial", "topk", "window"),
    (
        *("wide_summaries", "window_summaries", "calibrated_expected", "calibrated_even"),
        *("preset_steep", "preset_gentle"),
    ),
)
"""Names of the methods; those of the first tier are measured at all densities first, and so on."""
KNEES = {"preset": KNEE, "preset_steep": 1.05, "preset_gentle": 1.5, "preset_constant": None}
"""How steeply the density falls, see `falling_densities`; None for the same in all steps."""
EVEN = 0.5
"""Power of the steps' weights in an untried calibration that believes less in them."""
WARM_STEPS = 2
"""Of the run before one that is timed."""
NAME = "training_free_density"
CALIBRATION_SEED = 1000
"""Of a calibration's videos: none that is compared."""


Results = dict[str, Any]


class Comparison:
    """Dense attention's videos, to compare a method's with."""

    def __init__(self, pipeline: FreqFormerPipeline, amount: Amount) -> None:
        self.pipeline = pipeline
        self.amount = amount
        self._videos(WARM_STEPS)
        began = time.perf_counter()
        self.videos = self._videos(amount.steps)
        self.seconds = time.perf_counter() - began

    def of(self, method: Method) -> dict[str, Any]:
        """PSNR and SSIM of the videos, mean and each, and the seconds that they took."""
        with method.on(self.pipeline.transformer):
            self._videos(WARM_STEPS)
            began = time.perf_counter()
            videos = self._videos(self.amount.steps)
            seconds = time.perf_counter() - began
        decibels = psnr(videos, self.videos)
        return {
            "about": method.about,
            "density": method.density,
            "heads": None if method.table is None else method.table.shares,
            "psnr": float(decibels.mean()),
            "ssim": float(ssim(videos, self.videos).mean()),
            "seconds": seconds,
            "dense_seconds": self.seconds,
            "psnr_by_video": decibels.tolist(),
        }

    def _videos(self, steps: int) -> Tensor:
        """Videos of seeds 0, 1, ..., (videos, F, C, H, W) in [0, 1], on the CPU."""
        generators = [torch.Generator().manual_seed(seed) for seed in range(self.amount.videos)]
        options = {
            "num_inference_steps": steps,
            "batch_size": len(generators),
            "output_type": "pt",
        }
        return (
            self.pipeline(*self.amount.size.video, generator=generators, **options)  # type: ignore[arg-type]
            .frames.float()
            .cpu()
        )


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
        self._patterns: dict[float, dict[str, Method]] = {}
        self._choices: dict[tuple[float, float], PipelineChoice] = {}
        self._on_clips: Calibration | None = None
        self._means: dict[float, list[tuple[Tensor, Tensor]]] = {}

    def of(self, density: float, start: float) -> dict[str, Callable[[], Method]]:
        """By name; each is made when it is called."""
        if density not in self._patterns:
            self._patterns[density] = single_patterns(density, self.grid, self.shape)
        patterns = self._patterns[density]

        def pattern(name: str) -> Method:
            found = patterns[name]
            assert found.table is not None
            return by_table(guarded(found.table, start), found.density, found.about)

        return {
            **{
                name: lambda knee=knee: self._preset(density, start, knee)
                for name, knee in KNEES.items()
            },
            "calibrated": lambda: self._calibrated(density, start),
            "calibrated_expected": lambda: by_expected_error(
                self._choice(density, start).calibration, density, 1.0
            ),
            "calibrated_on_clips": lambda: self._calibrated_on_clips(density, start),
            "calibrated_even": lambda: by_expected_error(
                self._choice(density, start).calibration, density, EVEN
            ),
            **{name: lambda name=name: pattern(name) for name in patterns},
            "threshold": lambda: self._threshold(density, start),
        }

    def _preset(self, density: float, start: float, knee: float | None) -> Method:
        scheduler = self.pipeline.scheduler
        scheduler.set_timesteps(self.amount.steps)
        assert scheduler.timesteps is not None
        levels = [float(timestep) / 1000 for timestep in scheduler.timesteps]
        first = ceil(start * len(levels) - 1e-9)
        table, delivered = preset_table(density, self.grid, self.shape, levels[first:], knee)
        about = "the same in all steps" if knee is None else f"falling, knee at {knee}"
        return by_table(table, delivered, f"the plug-in without a table, density {about}")

    def _calibrated(self, density: float, start: float) -> Method:
        choice = self._choice(density, start)
        assert choice.chosen is not None
        (table,) = choice.tables.values()
        about = (
            f"calibrate_pipeline, nearest of {len(choice.tried)} that were tried: "
            f"{choice.chosen.name}, {choice.chosen.nearness:.2f} dB in the latents"
        )
        return by_table(table, choice.density, about)

    def _choice(self, density: float, start: float) -> PipelineChoice:
        """Of all densities at once, the lowest first, so that each is compared with those below.

        Nearness is that of all videos together: the energy of their latents over that of the
        difference.
        """
        if (density, start) not in self._choices:
            amount = self.amount
            frames, height, width = amount.size.video
            for one in sorted({*amount.densities, density}):
                self._choices[one, start] = calibrate_pipeline(
                    self.pipeline,
                    # One call for all of them: a call of one video is bound by the host.
                    [{"batch_size": amount.calibration_videos}],
                    density=one,
                    call={"num_frames": frames, "height": height, "width": width},
                    settings=CalibrationSettings(
                        steps=amount.calibration_steps,
                        start_percent=start,
                        seed=CALIBRATION_SEED,
                        trials=amount.trials,
                    ),
                    state=self.folder / f"calibration-{start}",
                    progress=False,
                )
        return self._choices[density, start]

    def _calibrated_on_clips(self, density: float, start: float) -> Method:
        if self._on_clips is None:
            amount, model = self.amount, self.pipeline.transformer
            clips = drawn_clips(amount.calibration_clips, -1, amount, model.device)
            _, self._on_clips = calibrate(
                model,
                clips.split(amount.size.batch),
                1.0,
                candidates=Candidates(CUBES, amount.mid_tiles, amount.windows),
                num_buckets=NUM_BUCKETS,
                state=self.folder / "calibration-clips",
                progress=False,
            )
        return within_tolerance(self._on_clips, density, start)

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


def ordered(amount: Amount) -> Iterator[tuple[float, float, str]]:
    """Start, density and name of every row, in the order in which they are measured."""
    for tier in TIERS:
        for density in amount.densities:
            for start in STARTS:
                for name in tier:
                    yield start, density, name


def run(
    folder: Path,
    amount: Amount,
    device: torch.device,
    dtype: torch.dtype,
    keep: Callable[[Results], Any],
    *,
    earlier: Results | None = None,
    seconds: tuple[float, float] = (inf, inf),
) -> bool:
    """Every row that is missing, until time ends.

    Args:
        folder: of the dense pipeline and the calibrations' states.
        amount: how much is run.
        device, dtype: of the model.
        keep: is given all results, JSON-able, after each row.
        earlier: what it was given in an earlier call with this model.
        seconds: that training may take, and after which no row begins.

    Returns: whether all rows are there.

    Raises:
        ValueError: where the earlier results are of another model.
    """
    for_training, for_all = seconds
    until = time.perf_counter() + for_all
    if not (folder / "model_index.json").is_file():
        train(folder, amount, device, for_training)
    trained = json.loads((folder / TRAINED).read_text())
    pipeline = FreqFormerPipeline.from_pretrained(folder).to(device, dtype)
    pipeline.set_progress_bar_config(disable=True)
    methods = Methods(pipeline, amount, folder)
    layers, heads, head_dim = methods.shape
    results: Results = {
        "model": {"layers": layers, "heads": heads, "head_dim": head_dim, "dtype": str(dtype)},
        "weights": weights_digest(folder),
        "tokens": methods.grid.num_tokens,
        "train_steps": trained["steps"],
        "loss": trained["loss"],
        "sampler_steps": amount.steps,
        "videos": amount.videos,
        "calibration": amount.calibration,
        "rows": {},
    }
    if earlier is not None:
        if earlier["weights"] != results["weights"]:
            raise ValueError(
                f"earlier results are of the weights {earlier['weights'][:12]}, and {folder} holds "
                f"{results['weights'][:12]}; give that model, or leave --resume out"
            )
        results["rows"] = earlier["rows"]
    comparison = None
    for start, density, name in ordered(amount):
        own = results["rows"].setdefault(str(start), {}).setdefault(str(density), {})
        if name in own:
            continue
        if time.perf_counter() > until:
            break
        comparison = comparison or Comparison(pipeline, amount)
        try:
            own[name] = comparison.of(methods.of(density, start)[name]())
        except (RuntimeError, ValueError):
            # What fails costs its own row, and not those behind it.
            print(f"{start:4} {density:5} {name:18} failed", flush=True)
            traceback.print_exc()
            continue
        keep(results)
        _tell(start, density, name, own[name])
    rows = results["rows"]
    return all(
        name in rows.get(str(start), {}).get(str(density), {})
        for start, density, name in ordered(amount)
    )


def _tell(start: float, density: float, name: str, row: dict[str, Any]) -> None:
    print(
        f"{start:4} {density:5} {name:18}{row['density']:9.4f}{row['psnr']:9.2f}"
        f"{row['ssim']:8.4f}{row['seconds']:7.2f}  {row['about']}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", type=Path, required=True, help="a saved dense pipeline, or where to train one"
    )
    parser.add_argument("--train-steps", type=int, default=Amount.train_steps)
    parser.add_argument("--train-seconds", type=float, default=inf)
    parser.add_argument("--max-seconds", type=float, default=inf)
    parser.add_argument("--resume", type=Path, help="results of an earlier call")
    parser.add_argument("--output", type=Path, default=record.RESULTS)
    parser.add_argument("--commit", help="of this checkout, where git isn't there to ask")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this takes a GPU: at the study's size a CPU would need days")
    complete = run(
        given.model,
        replace(Amount(), train_steps=given.train_steps),
        torch.device("cuda"),
        torch.bfloat16,
        lambda results: record.save(NAME, results, given.output, given.commit),
        earlier=None if given.resume is None else json.loads(given.resume.read_text()),
        seconds=(given.train_seconds, given.max_seconds),
    )
    if not complete:
        print("rows are missing, for want of time or since they failed; --resume goes on")


if __name__ == "__main__":
    main()
