"""The averaged weights of a run as a pipeline folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from freqformer._files import writing_folder
from freqformer._optional import needs
from freqformer.training.cache.encoders import add_encoders
from freqformer.training.report import CheckpointError

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel

    from freqformer.models.transformer import FreqFormerTransformer3DModel
    from freqformer.training.cache.reading import LatentCache


@contextmanager
def averaged_weights(model: Any, ema: EMAModel) -> Iterator[None]:
    """The model with its averaged weights; its own come back at the end.

    One by one, which weights shared among ranks allow too.

    Args:
        model: in training, or its `TrainedWeights`.
        ema: the average of its weights.
    """
    parameters = list(model.parameters())
    own = [parameter.detach().clone().cpu() for parameter in parameters]
    _fill(parameters, ema.shadow_params)
    try:
        yield
    finally:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                # A forward pass leaves what it has gathered in place, which is of the average.
                module.reshard()
        _fill(parameters, own)


@torch.no_grad()
def _fill(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value.to(parameter.device))


def gathered_average(model: Any, ema: EMAModel, *, keep: bool) -> dict[str, Tensor]:
    """The averaged weights by name, whole and on the CPU. All ranks that share them call it.

    Args:
        model: in training, or its `TrainedWeights`.
        ema: the average of its weights.
        keep: whether this process is given them; without it the dict is empty.
    """
    names = (name for name, _ in model.named_parameters())
    averaged = {}
    for name, shadow in zip(names, ema.shadow_params, strict=True):
        whole = shadow.full_tensor() if isinstance(shadow, DTensor) else shadow
        if keep:
            averaged[name] = whole.cpu()
    return averaged


WITHOUT_MANIFEST = ("model_index.json", "transformer/*", "scheduler/*")
"""What a run's pipeline of versions without manifest consists of."""


def write_averaged(
    target: Path,
    model: FreqFormerTransformer3DModel,
    ema: EMAModel,
    shift: float,
    cache: LatentCache | None = None,
) -> None:
    """Write a pipeline with the averaged weights; the model keeps its own.

    Args:
        target: folder to write; an earlier pipeline of the run is replaced.
        model: in training.
        ema: the average of its weights.
        shift: of the timesteps, for the scheduler.
        cache: that the model was trained on, whose VAE and text encoder the pipeline gets; None for
            a model of pixels.

    Raises:
        CheckpointError: where it can't be written, or the folder holds anything else.
    """
    with averaged_weights(model, ema):
        write_pipeline(target, model, shift, cache)


def write_pipeline(
    target: Path,
    model: FreqFormerTransformer3DModel,
    shift: float,
    cache: LatentCache | None = None,
) -> None:
    """Write a pipeline with the model's own weights; arguments and errors as `write_averaged`."""
    with needs("train"):
        from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
            FlowMatchEulerDiscreteScheduler,
        )

    from freqformer.models.pipeline import FreqFormerPipeline

    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    with writing_folder(
        target, kind="pipeline", known=WITHOUT_MANIFEST, error=CheckpointError
    ) as folder:
        FreqFormerPipeline(transformer=model, scheduler=scheduler).save_pretrained(folder)
        if cache is not None:
            add_encoders(folder, cache)
