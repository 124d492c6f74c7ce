"""Where the density of a pipeline's tables went: a picture."""

from __future__ import annotations

from pathlib import Path

from freqformer.calibration.pipelines.choice import PipelineChoice


def steps_figure(choice: PipelineChoice, path: Path) -> None:
    """Density by layer and step, and the error that each step is expected to add.

    Args:
        choice: of `calibrate_pipeline`.
        path: PNG to write.

    Raises:
        ValueError: where it can't be written.
    """
    from freqformer._colours import INK
    from freqformer.analysis.figures import blank_figure, label_axes, save_figure

    steps = choice.calibration.steps
    figure = blank_figure(11, 4.2)
    maps, errors = figure.subplots(1, 2)
    shares = choice.choice.costs.mean(2).T.numpy()
    shown = maps.imshow(shares, aspect="auto", cmap="viridis", vmin=0, vmax=1)
    label_axes(maps, "share of dense attention's FLOPs", "step, noisiest first", "layer")
    figure.colorbar(shown, ax=maps)
    added = choice.choice.errors.square().sum((1, 2)).sqrt().numpy()
    errors.plot([step.level for step in steps], added, marker="o", color=INK)
    label_axes(errors, "expected error of the final latents", "noise level, 1 is noise", "")
    save_figure(figure, path)
