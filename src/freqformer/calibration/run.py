"""`calibrate`: run a dense model on noisy clips, measure every candidate, choose.

Shape legend: B batch, C channels, F frames, H rows, W columns of a clip.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from freqformer._files import locked
from freqformer._interrupt import StopRequest, between_steps
from freqformer._optional import needs
from freqformer.attention import DenseAttention
from freqformer.calibration.candidates import Candidates
from freqformer.calibration.choice import Calibration, check_positive
from freqformer.calibration.measure import Energies, measured
from freqformer.routing import RoutingTable
from freqformer.routing.origin import origin_of
from freqformer.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from freqformer.training.objective import TIMESTEP_SCALE
from freqformer.training.seeding import derive_generator
from freqformer.training.starting import check_model

if TYPE_CHECKING:
    from freqformer.models.transformer import FreqFormerTransformer3DModel

Batch = Tensor | tuple[Tensor, ...]
"""Clean clips (B, C, F, H, W), or these with text embeddings, and a mask or none, for a model with
text."""


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
    if isinstance(num_buckets, bool) or not isinstance(num_buckets, int) or num_buckets < 1:
        raise ValueError(f"num_buckets is {num_buckets!r}; whole numbers from 1 up are allowed")
    _check_dense(model)
    remaining = iter(batches)
    first = next(remaining, None)
    if first is None:
        raise ValueError("batches is empty; one batch of clips at least is allowed")
    grid = model.grid_for(_clips(first).shape)
    candidates = (candidates or Candidates.usual(model.frequency_config)).pinned(grid)
    total = len(batches) if isinstance(batches, Sized) else None
    folder = Path(state) if state is not None else None
    # What no state keeps need not be finished.
    stopping = between_steps("finishing the batch") if folder else nullcontext(StopRequest())
    alone = locked(folder) if folder else nullcontext()
    with alone, _progress_bar(progress, total) as advance, stopping as stop:
        run = _Run(model, candidates, num_buckets, seed, folder)
        for batch in chain([first], remaining):
            if model.grid_for(_clips(batch).shape) != grid:
                raise ValueError(
                    f"batches holds clips {tuple(_clips(batch).shape)} after others on {grid}; one "
                    "size is allowed"
                )
            run.add(batch)
            advance()
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


def _clips(batch: Any) -> Tensor:
    clips = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(clips, Tensor) or clips.ndim != 5 or not clips.is_floating_point():
        what = (
            f"{clips.dtype} {tuple(clips.shape)}"
            if isinstance(clips, Tensor)
            else type(clips).__name__
        )
        raise ValueError(
            f"batches holds {what}; float clips (batch, channels, frames, height, width) are "
            "allowed"
        )
    return clips


class _Run:
    """Sums of energies by bucket, the batches that they are of, and the folder that keeps both."""

    def __init__(
        self,
        model: FreqFormerTransformer3DModel,
        candidates: Candidates,
        num_buckets: int,
        seed: int,
        folder: Path | None,
    ) -> None:
        self.model, self.candidates, self.buckets, self.seed, self.folder = (
            model,
            candidates,
            num_buckets,
            seed,
            folder,
        )
        layers, heads = len(model.attentions), model.attentions[0].num_heads
        count = len(candidates.operators)
        self.sums = Energies(
            torch.zeros(num_buckets, layers, heads, count, dtype=torch.float64),
            torch.zeros(num_buckets, layers, heads, dtype=torch.float64),
        )
        self.done = 0
        """Batches that `add` was given in this process."""
        self.batches: list[str] = []
        """Digests of all batches in the sums, those of the state first."""
        if folder is not None:
            self.made_with = self._description()
            self._resume(folder)

    def add(self, batch: Batch) -> None:
        """Measure a batch in every bucket, unless the state has it, and keep the state."""
        index, self.done = self.done, self.done + 1
        digest = (
            _digest(batch if isinstance(batch, tuple | list) else [batch])
            if self.folder is not None
            else ""
        )
        if index < len(self.batches):
            if self.batches[index] != digest:
                raise ValueError(
                    f"state in {self.folder} is of other batches from number {index} on; give the "
                    "batches it began with, "
                    "or another folder"
                )
            return
        for bucket in range(self.buckets):
            found = self._forward(batch, index, bucket)
            self.sums.error[bucket] += found.error
            self.sums.output[bucket] += found.output
        self.batches.append(digest)
        if self.folder is not None:
            groups = {"energies": {"error": self.sums.error, "output": self.sums.output}}
            save_checkpoint(
                self.folder,
                len(self.batches),
                groups,
                {"made_with": self.made_with, "batches": self.batches},
            )

    def errors(self) -> Tensor:
        """Relative errors, (buckets, layers, heads, candidates)."""
        # A head whose output is zero everywhere has no relative error; only candidates that give
        # zero too are right.
        output = self.sums.output.clamp_min(torch.finfo(torch.float64).tiny)
        errors = (self.sums.error / output[..., None]).sqrt()
        if not bool(errors.isfinite().all()):
            layer = int((~errors.isfinite()).nonzero()[0, 1])
            raise ValueError(
                f"model gives values that are not finite in layer {layer}; check its weights, "
                "dtype and clips"
            )
        return errors

    @torch.no_grad()
    def _forward(self, batch: Batch, index: int, bucket: int) -> Energies:
        """The energies of one forward pass at noise levels of this bucket."""
        model, clips = self.model, _clips(batch)
        generator = derive_generator(self.seed, "calibration", index, bucket)
        timestep = (
            bucket + torch.rand(len(clips), generator=generator, dtype=torch.float64)
        ) / self.buckets
        level = timestep.float().view(-1, 1, 1, 1, 1)
        noise = torch.randn(clips.shape, generator=generator)
        noisy = (1 - level) * clips.float().cpu() + level * noise
        text = batch[1:] if isinstance(batch, tuple | list) else ()
        given = [
            noisy.to(model.device, model.dtype),
            (timestep.float() * TIMESTEP_SCALE).to(model.device),
        ]
        if text:
            given.append(text[0].to(model.device, model.dtype))
        given += [mask.to(model.device) for mask in text[1:]]
        training = model.training
        model.eval()
        try:
            with measured(model.attentions, self.candidates) as energies:
                model(*given)
        finally:
            model.train(training)
        return energies

    def _description(self) -> dict[str, Any]:
        """What the sums depend on beside the batches, JSON-able."""
        weights = _digest(tensor for _, tensor in sorted(self.model.state_dict().items()))
        return json.loads(
            json.dumps(
                {
                    "model": {
                        key: value
                        for key, value in self.model.config.items()
                        if not key.startswith("_")
                    },
                    "weights": weights,
                    "band_config": self.candidates.config.to_dict(),
                    "candidates": self.candidates.names,
                    "num_buckets": self.buckets,
                    "seed": self.seed,
                }
            )
        )

    def _resume(self, folder: Path) -> None:
        newest = newest_checkpoint(folder)
        if newest is None:
            return
        groups, state = load_checkpoint(newest)
        made_with, batches, energies = (
            state.get("made_with"),
            state.get("batches"),
            groups.get("energies", {}),
        )
        if (
            not isinstance(made_with, dict)
            or not isinstance(batches, list)
            or not {"error", "output"} <= energies.keys()
        ):
            raise ValueError(
                f"{newest} holds no state of a calibration; give another folder, or remove it"
            )
        differs = [name for name, value in self.made_with.items() if made_with.get(name) != value]
        if differs:
            raise ValueError(
                f"state in {folder} was made with another {' and '.join(differs)}; call with what "
                "it began with, or give "
                "another folder"
            )
        found = Energies(energies["error"], energies["output"])
        if (
            found.error.shape != self.sums.error.shape
            or found.output.shape != self.sums.output.shape
        ):
            raise ValueError(
                f"{newest} has energies {tuple(found.error.shape)}; {tuple(self.sums.error.shape)} "
                "are allowed"
            )
        self.sums, self.batches = found, batches


def _digest(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of tensors' dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def _progress_bar(enabled: bool, total: int | None) -> Iterator[Any]:
    """A function that counts one more batch, shown as a bar on standard error."""
    if not enabled:
        yield lambda: None
        return
    with needs("train"):
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

    columns = (TextColumn("calibrating"), BarColumn(), MofNCompleteColumn(), TextColumn("batches"))
    with Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)
    ) as bar:
        task = bar.add_task("calibrating", total=total)
        yield lambda: bar.advance(task)
