"""What `freqformer calibrate` does once it knows the model."""

from __future__ import annotations

from pathlib import Path

import torch

from freqformer._files import output_folder
from freqformer.calibration.candidates import Candidates
from freqformer.calibration.choice import Choice
from freqformer.calibration.report import EARLIER, FILES, write_report
from freqformer.calibration.run import calibrate
from freqformer.models.transformer import FreqFormerTransformer3DModel
from freqformer.training.config import DataConfig
from freqformer.training.sources import clip_source

TOLERANCE = 0.1
"""Where neither a tolerance nor a budget is asked for."""


def calibrate_on_clips(
    transformer: FreqFormerTransformer3DModel,
    data: DataConfig,
    output: Path,
    *,
    tolerance: float | None,
    budget: float | None,
    num_clips: int,
    candidates: Candidates,
    num_buckets: int,
    seed: int,
) -> Choice:
    """Calibrate a model of pixels on the first clips of a source, one a batch, and write the
    report.

    Args:
        transformer: dense; moved to the GPU if there is one.
        data: where the clips are and what a clip is.
        output: folder of the report, and of the state in `state/`.
        tolerance: as in `calibrate`; 0.1 where neither it nor a budget is given.
        budget: share of dense attention's FLOPs, in place of a tolerance: the smallest that keeps
            to it is taken.
        num_clips: clips to measure on.
        candidates, num_buckets, seed: as in `calibrate`.

    Raises:
        ValueError: as `calibrate`, for both a tolerance and a budget, for clips that can't be read,
            and where another process is writing to `output`, or it holds files of these names that
            no calibration wrote.
    """
    if tolerance is not None and budget is not None:
        raise ValueError(
            f"tolerance is {tolerance} and budget {budget}; one of them is allowed: the budget "
            "sets the tolerance"
        )
    with output_folder(output, "calibrate", FILES, earlier=(*EARLIER, "state")):
        source = clip_source(data, seed)
        samples = [source.load(index) for index in range(num_clips)]
        for sample in samples:
            source.report(sample)
        transformer.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
        tolerance = TOLERANCE if tolerance is None else tolerance
        _, calibration = calibrate(
            transformer,
            [sample.clip[None] for sample in samples],
            tolerance,
            candidates=candidates,
            num_buckets=num_buckets,
            seed=seed,
            state=output / "state",
        )
        return write_report(
            calibration, tolerance if budget is None else calibration.tolerance_for(budget), output
        )
