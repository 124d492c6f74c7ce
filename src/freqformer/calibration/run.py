"""`calibrate`: run a dense model on noisy clips, measure every candidate, choose.

Shape legend: B batch, C channels, F frames, H rows, W columns of a clip.
"""

from __future__ import annotations

from collections.abc import Iterable, Sized
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from freqformer._files import locked
from freqformer._interrupt import StopRequest, between_steps
from freqformer._progress import progress_bar
from freqformer._validate import check_positive, check_whole
from freqformer.attention import DenseAttention
from freqformer.calibration.candidates import Candidates
from freqformer.calibration.choice import Calibration
from freqformer.calibration.sums import Batch, EnergySums, clips_of
from freqformer.routing import RoutingTable
from freqformer.routing.origin import origin_of
from freqformer.training.starting import check_model

if TYPE_CHECKING:
    from freqformer.models.transformer import FreqFormerTransformer3DModel


def calibrate(
    model: FreqFormerTransformer3DModel,
    batches: Iterable[Batch],
    tolerance: float,
    *,
    candidates: Candidates | None = None,
    num_buckets: int = 10,
    seed: int = 0,
    state: str | Path | None = None,
    progress: bool = True,
) -> tuple[RoutingTable, Calibration]:
    """A routing table for a trained dense model: every head the cheapest operator within a
    tolerance, without training.

    Each batch goes through the model once for each timestep bucket, with noise of that level; in
    every layer each candidate is compared with the dense outputs of the same queries, keys and
    values. `model.set_routing_table(table)` then runs it.

    With a state, Ctrl-C and SIGTERM end after the batch that is being measured, which is kept; a
    second one ends at once, and the batches before it are kept.

    Args:
        model: with `frequency=FreqFormerConfig.dense()`; it comes back as it was.
        batches: finite; clean clips (B, C, F, H, W) of one size as the model was trained on (pixels
            in [-1, 1], or latents), or tuples (clips, text embeddings[, text mask]) for a model
            with text. Moved to the model's device.
        tolerance: largest relative L2 error of a head's output, above 0.
        candidates: what is measured; None takes those of the model's record.
        num_buckets: equal shares of the noise levels.
        seed: of noise and noise levels.
        state: folder that keeps what is done after every batch. The same call goes on from there,
            and gives the same table bit for bit; with all batches done, any tolerance takes
            seconds.
        progress: whether to draw a progress bar on standard error.

    Returns: the table, and the errors that it was chosen by.

    Raises:
        ValueError: for a tolerance, model or batch that does not fit, and for a state of another
            model, other candidates or other batches, or that another process is writing, naming it
            and the remedy.
        KeyboardInterrupt: (`Interrupted`) after a signal, once the state is kept.
    """
    check_model(model)
    check_positive("tolerance", tolerance)
    check_whole("num_buckets", num_buckets, 1)
    _check_dense(model)
    remaining = iter(batches)
    first = next(remaining, None)
    if first is None:
        raise ValueError("batches is empty; one batch of clips at least is allowed")
    grid = model.grid_for(clips_of(first).shape)
    candidates = (candidates or Candidates.usual(model.frequency_config)).pinned(grid)
    total = len(batches) if isinstance(batches, Sized) else None
    folder = Path(state) if state is not None else None
    # What no state keeps need not be finished.
    stopping = between_steps("finishing the batch") if folder else nullcontext(StopRequest())
    alone = locked(folder) if folder else nullcontext()
    with (
        alone,
        progress_bar("calibrating", total, enabled=progress, counted="batches") as bar,
        stopping as stop,
    ):
        run = EnergySums(model, candidates, num_buckets, seed, folder)
        for batch in chain([first], remaining):
            if model.grid_for(clips_of(batch).shape) != grid:
                shape = tuple(clips_of(batch).shape)
                raise ValueError(
                    f"batches holds clips {shape} after others on {grid}; one size is allowed"
                )
            run.add(batch)
            bar.advance()
            if stop.asked:
                raise stop.interrupted(
                    f" after batch {run.done}, which {run.folder} keeps: the same command goes on"
                )
    layer = model.attentions[0]
    costs = candidates.costs(grid, num_heads=layer.num_heads, head_dim=layer.head_dim)
    costs = torch.tensor(costs, dtype=torch.float64)
    calibration = Calibration(run.errors(), costs, candidates, grid, origin_of(model.attentions))
    return calibration.choose(tolerance).table, calibration


def _check_dense(model: FreqFormerTransformer3DModel) -> None:
    for index, layer in enumerate(model.attentions):
        dense, tabled = isinstance(layer, DenseAttention), layer.table_bands is not None
        if not dense or tabled:
            has = "a routing table" if tabled else f"a {type(layer).__name__}"
            raise ValueError(
                f"model has {has} in layer {index}; dense layers are allowed: call "
                "set_routing_table(None), or load the weights, without 'allocation', into a model "
                "with frequency=FreqFormerConfig.dense()"
            )
