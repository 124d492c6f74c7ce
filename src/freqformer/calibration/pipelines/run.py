"""`calibrate_pipeline`: run the dense model on prompts, measure candidates and how errors grow,
choose, and try."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from freqformer._files import locked
from freqformer._validate import check_number, check_positive
from freqformer.calibration.pipelines.choice import PipelineChoice
from freqformer.calibration.pipelines.settings import CalibrationSettings, Prompts

DENSITY = 0.2


def calibrate_pipeline(
    pipe: Any,
    prompts: Prompts,
    *,
    density: float | None = None,
    tolerance: float | None = None,
    call: Mapping[str, Any] | None = None,
    settings: CalibrationSettings | None = None,
    state: str | Path | None = None,
    progress: bool = True,
) -> PipelineChoice:
    """Routing tables for the transformers of a pipeline, from what errors do to its videos, without
    training.

    The dense model makes a video of every prompt, while each layer's candidates are compared with
    its own attention on the same queries, keys and values, both halves of guidance included. Then a
    few steps run banded, one at a time, and the final latents tell how errors of each grow. Density
    goes where it keeps the final latents nearest, as far as these errors foretell it; at last
    several tables, the preset's and choices for less density among them, make the videos again, and
    the nearest is taken. The pipeline comes back as it was.

    Args:
        pipe: of diffusers, with any transformers that `enable_frequency_attention` takes, offloaded
            or not; or a `FreqFormerPipeline` whose model is dense.
        prompts: texts, or the arguments of a call each. Two or three are enough.
        density: attention FLOPs of the banded steps over those of dense attention, at most; None
            takes 0.2.
        tolerance: in its place, the largest expected relative (L2) error of the final latents: it
            says the density, at which tables are tried.
        call: arguments that all calls share: height, width, num_frames, guidance_scale and so on,
            as videos will be made.
        settings: steps, guards, and what is measured; None takes `CalibrationSettings()`.
        state: folder that keeps what is done, every ten seconds and however the call ends. The
            same call goes on from there; another density takes its trials only, and all tables that
            were tried before, for any density that isn't higher, are compared too: in one state a
            higher density, asked for later, never has a farther table on the calibration's own
            videos.
        progress: whether to draw a progress bar on standard error.

    Returns:
        the tables, for `enable_frequency_attention(pipe, choice.tables)`, and all they follow from.

    Raises:
        ValueError: for another kind of pipeline, one that has frequency attention, prompts of
            several sizes, a density that can't be met, and a state of another call.
        KeyboardInterrupt: (`Interrupted`) after a signal, once the state is kept.
    """
    if density is not None and tolerance is not None:
        raise ValueError(
            f"density is {density} and tolerance {tolerance}; one of the two is allowed: leave one "
            "out"
        )
    if tolerance is not None:
        check_positive("tolerance", tolerance)
    density = DENSITY if density is None else density
    check_number("density", density, 0.001, 1, "0.2 computes a fifth of attention")
    # Imported here, since other calibrations need nothing of diffusers.
    from freqformer.calibration.pipelines.runs import Runs
    from freqformer.calibration.pipelines.subjects import subjects_of
    from freqformer.calibration.pipelines.work import Work

    settings = settings or CalibrationSettings()
    subjects = subjects_of(pipe)
    runs = Runs(pipe, prompts, call or {}, settings)
    folder = None if state is None else Path(state)
    with nullcontext() if folder is None else locked(folder):
        work = Work(subjects, runs, settings, folder)
        work.finish(progress)
        calibration = work.calibration()
        expected = (
            calibration.choose(density)
            if tolerance is None
            else calibration.choose_tolerance(tolerance)
        )
        if settings.trials == 0:
            return expected
        return work.nearest(
            calibration, density if tolerance is None else expected.density, progress
        )
