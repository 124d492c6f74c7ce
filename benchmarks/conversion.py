"""The study's dense model turned into a FreqFormer: held-out loss and likeness to its videos by
steps and seconds, without training, by stage one, by stages one and two, and of training from
scratch.

    PYTHONPATH=src:. python -m benchmarks.conversion --work FOLDER [--stop-after 280]
    [--methods training_free stage_one stages_one_and_two from_scratch] [--patterns window tiles]
    [--density 0.15] [--train-steps 2000] [--output FOLDER]

Everything lies in FOLDER: the same command goes on where it stopped, and says when all is done. The
dense model is trained first. All runs see the same procedural clips; seconds are those of steps,
without measuring. All but what is from scratch is run for every pattern of converted layers. With
the dense model's loss, and again after every method that is done, conversion.json is written.
Prints a table at the end.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from benchmarks.conversion_measures import Curve, Measure, Point
from benchmarks.conversion_runs import Amount, Runs

from benchmarks import record
from freqformer._files import write_json
from freqformer.config import FreqFormerConfig
from freqformer.conversion.config import StagesConfig
from freqformer.grid import tile_layout
from freqformer.integrations.diffusers.converted.windows import (
    Pattern,
    WindowSettings,
    window_config,
    window_density,
)

FROM_SCRATCH = "from_scratch"
METHODS = ("training_free", "stage_one", "stages_one_and_two", FROM_SCRATCH)
"""In the order in which they are run."""
PATTERNS = get_args(Pattern)
WITHIN = 1.01
"""Of the dense model's held-out loss, which is to be reached."""
ROW_FILE = "row.json"
"""In a method's folder: its row of the results, once it is done."""
Results = dict[str, Any]


def _nothing(_: Results) -> None:
    """Keeps no results."""


@dataclass(frozen=True)
class Row:
    """A method, and what its layers see."""

    method: str
    pattern: Pattern = "window"

    @property
    def name(self) -> str:
        """In the results, and of its folder."""
        return self.method if self.pattern == "window" else f"{self.pattern}_{self.method}"


def chosen_rows(methods: Sequence[str], patterns: Sequence[str]) -> list[Row]:
    """Of these methods and patterns, in the order in which they are run.

    Args:
        methods: of `METHODS`.
        patterns: of `PATTERNS`.
    """
    converted = [name for name in METHODS if name in methods and name != FROM_SCRATCH]
    rows = [Row(name, kind) for kind in PATTERNS if kind in patterns for name in converted]
    return [*rows, Row(FROM_SCRATCH)] if FROM_SCRATCH in methods else rows


class Benchmark:
    """The methods of a work folder.

    Args:
        work: the folder.
        amount: how much is run.
        stop_after: seconds after which `run` stops to go on later; None never does.
        methods: of `METHODS`, those that are run.
        patterns: of `PATTERNS`, for which.
    """

    def __init__(
        self,
        work: Path,
        amount: Amount,
        stop_after: float | None = None,
        methods: Sequence[str] = METHODS,
        patterns: Sequence[str] = PATTERNS,
    ) -> None:
        self.work, self.amount = work, amount
        self.rows = chosen_rows(methods, patterns)
        self._runs = Runs(work, amount, stop_after)
        self._measure: Measure | None = None

    def run(self, keep: Callable[[Results], None] = _nothing) -> Results | None:
        """All results, JSON-able; None where time is up before all is done.

        Args:
            keep: is given the results so far once the dense model is measured, and after every
                method that is done.
        """
        if not self._runs.train("dense", FreqFormerConfig.dense(), lambda _: {}):
            return None
        pipeline = self._runs.pipeline("dense")
        self._measure = Measure(pipeline, self.amount, self.work / "measures")
        results = self._without_methods()
        keep(results)
        for row in self.rows:
            values = self._values(row)
            if values is not None:
                results["methods"][row.name] = values
                keep(results)
        return results if len(results["methods"]) == len(self.rows) else None

    @property
    def config(self) -> FreqFormerConfig:
        """Of the model that is trained from scratch."""
        return replace(self._seen("window"), routing="timestep")

    def _windows(self, pattern: Pattern) -> WindowSettings:
        return replace(self.amount.windows, pattern=pattern)

    def _seen(self, pattern: Pattern) -> FreqFormerConfig:
        """What converted layers do on the study's grid."""
        return window_config(self.amount.size.grid, self._windows(pattern))

    @property
    def measure(self) -> Measure:
        """Of the dense model, once it is trained."""
        assert self._measure is not None
        return self._measure

    def _without_methods(self) -> Results:
        amount = self.amount
        grid = amount.size.grid
        spent = Curve(self.work / "dense").points[-1].seconds
        return {
            "dense": {"steps": amount.train_steps, "seconds": spent, **self.measure.dense},
            "density": window_density(grid, self._windows("window")),
            "window": list(self._seen("window").window),
            "tiles": self._tiles() if any(row.pattern == "tiles" for row in self.rows) else None,
            "falling": amount.falling,
            "tokens": grid.num_tokens,
            "videos": amount.videos,
            "sampler_steps": amount.sampler_steps,
            "methods": {},
        }

    def _tiles(self) -> dict[str, Any]:
        """How many tiles heads keep, and their density."""
        grid, config = self.amount.size.grid, self._seen("tiles")
        return {
            "density": window_density(grid, self._windows("tiles")),
            "kept": config.mid_tiles,
            "of": tile_layout(grid, config.tile).num_tiles,
        }

    def _values(self, row: Row) -> dict[str, Any] | None:
        """A row's values; None where time is up before it is done."""
        path = self.work / row.name / ROW_FILE
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
        if not self._is_done(row):
            return None
        begun = row.method == "training_free"
        values = self._begun(row.pattern) if begun else self._trained(row.name)
        path.parent.mkdir(exist_ok=True)
        write_json(path, values)
        return values

    def _is_done(self, row: Row) -> bool:
        """Run a method, unless time is up; whether it is done."""
        if row.method == "training_free":
            return not self._runs.time_is_up
        measured = self.measure.of
        if row.method == FROM_SCRATCH:
            return self._runs.train(row.name, self.config, measured)
        amount = self.amount
        velocity = amount.velocity_steps if row.method == "stages_one_and_two" else 0
        stages = StagesConfig(amount.layer_steps, velocity, falling=amount.falling)
        return self._runs.convert(row.name, stages, self._windows(row.pattern), measured)

    def _begun(self, pattern: Pattern) -> dict[str, Any]:
        """Of what is converted, and not trained."""
        pair = self._runs.pair(self._windows(pattern))
        return {"steps": 0, "seconds": 0.0, **self.measure.of(pair.model)}

    def _trained(self, name: str) -> dict[str, Any]:
        """Of a run that is done."""
        points = Curve(self.work / name).points
        spent = Curve(self.work / "dense").points[-1].seconds
        wanted = WITHIN * self.measure.dense["held_out_loss"]
        reached = next((point for point in points if point.loss <= wanted), None)
        pipeline = self._runs.pipeline(name).to(self.measure.device)
        return {
            "steps": points[-1].step,
            "seconds": points[-1].seconds,
            "share_of_dense_training": points[-1].seconds / spent,
            **self.measure.of(pipeline.transformer),
            "within_1_percent": None if reached is None else _shown(reached),
            "curve": [_shown(point) for point in points],
        }


def _shown(point: Point) -> dict[str, Any]:
    return {"step": point.step, "seconds": round(point.seconds, 2), **point.values}


def report(results: Results) -> None:
    """Print a table."""
    dense = results["dense"]
    print(
        f"{results['density']:.1%} of dense attention's FLOPs, window {results['window']}; dense: "
        f"{dense['steps']} steps, {dense['seconds']:.0f} s, held-out loss "
        f"{dense['held_out_loss']:.4f}"
    )
    if results["tiles"] is not None:
        tiles = results["tiles"]
        print(f"{tiles['density']:.1%} with the best {tiles['kept']} of {tiles['of']} tiles")
    print(f"{'':26}{'steps':>7}{'seconds':>9}{'loss':>9}{'of dense':>10}{'PSNR dB':>9}  within 1%")
    for name, row in results["methods"].items():
        share = row["held_out_loss"] / dense["held_out_loss"]
        reached = row.get("within_1_percent")
        told = f"step {reached['step']}, {reached['seconds']:.0f} s" if reached else "no"
        print(
            f"{name:26}{row['steps']:7}{row['seconds']:9.0f}{row['held_out_loss']:9.4f}"
            f"{share:10.4f}{row['psnr']:9.2f}  {told}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = Amount()
    parser.add_argument("--work", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--stop-after", type=float, help="seconds that this call may take")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=METHODS, help="which are run"
    )
    parser.add_argument(
        "--patterns", nargs="+", choices=PATTERNS, default=PATTERNS, help="of converted layers"
    )
    parser.add_argument("--density", type=float, default=usual.windows.density)
    parser.add_argument("--train-steps", type=int, default=usual.train_steps)
    parser.add_argument("--layer-steps", type=int, default=usual.layer_steps)
    parser.add_argument("--velocity-steps", type=int, default=usual.velocity_steps)
    parser.add_argument("--falling", type=float, default=usual.falling)
    parser.add_argument("--learning-rate", type=float, default=usual.learning_rate)
    parser.add_argument("--output", type=Path, default=record.RESULTS)
    parser.add_argument("--commit", help="of this checkout, where git isn't there to ask")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this takes a GPU: at the study's size a CPU would need days")
    amount = replace(
        usual,
        windows=replace(usual.windows, density=given.density),
        train_steps=given.train_steps,
        layer_steps=given.layer_steps,
        velocity_steps=given.velocity_steps,
        falling=given.falling,
        learning_rate=given.learning_rate,
    )

    def keep(results: Results) -> None:
        path = record.save("conversion", results, given.output, given.commit)
        print(f"{path}: {', '.join(results['methods']) or 'the dense model'}", flush=True)

    chosen = (given.methods, given.patterns)
    results = Benchmark(given.work, amount, given.stop_after, *chosen).run(keep)
    if results is None:
        print("time is up: the same command goes on")
        return
    report(results)


if __name__ == "__main__":
    main()
