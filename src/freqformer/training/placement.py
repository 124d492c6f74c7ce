"""Where a run's weights and clips are: whole on every process, or shared among ranks."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from freqformer.distributed import make_mesh, parallelize
from freqformer.distributed.mesh import DP_REPLICATE, DP_SHARD
from freqformer.distributed.weights import shard_weights
from freqformer.training.averaged import gathered_average, write_averaged, write_pipeline
from freqformer.training.checkpoint import (
    is_sharded,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from freqformer.training.config import OptimizerConfig
from freqformer.training.optimizer import adamw
from freqformer.training.parallel_config import ParallelConfig
from freqformer.training.sharded_checkpoint import save_sharded, told_by_main
from freqformer.training.state import restore_run, restore_shards

if TYPE_CHECKING:
    from accelerate import Accelerator
    from diffusers.training_utils import EMAModel

    from freqformer.models.transformer import FreqFormerTransformer3DModel
    from freqformer.training.cache.reading import LatentCache


@dataclass(frozen=True, eq=False)
class Placed:
    """A model where it trains."""

    wrapped: Any
    """What is called."""
    optimizer: torch.optim.Optimizer
    stepper: Any
    """The optimizer as accelerate steps it."""


class Replicated:
    """Every process holds all weights and takes clips of its own: accelerate's data parallelism.

    Args:
        accelerator: of the run.
    """

    save = staticmethod(save_checkpoint)
    """Write a checkpoint; the main process calls it."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self.data_ranks = accelerator.num_processes
        """Processes that take clips of their own."""
        self.data_rank = accelerator.process_index
        """Number of this one's clips among them."""
        self.saves_alone = True
        """Whether the main process can write a checkpoint without the others."""

    def place(self, model: nn.Module, settings: OptimizerConfig) -> Placed:
        """Put a model to where it trains, with its optimizer."""
        optimizer = adamw(model, settings)
        wrapped, stepper = self._accelerator.prepare(model, optimizer)
        return Placed(wrapped, optimizer, stepper)

    def computing(self) -> AbstractContextManager[Any]:
        """Around a forward pass."""
        return nullcontext()

    def newest(self, folder: Path) -> Path | None:
        """The newest whole checkpoint."""
        return newest_checkpoint(folder)

    def restore(self, path: Path, model: Any, ema: EMAModel, optimizer: Any) -> None:
        """Put a run back to a checkpoint of any number of ranks."""
        _restore_whole(path, model, ema, optimizer)

    def save_pipeline(
        self, target: Path, placed: Placed, ema: EMAModel, shift: float, cache: LatentCache | None
    ) -> None:
        """Write the pipeline with the averaged weights, and the encoders of a cache."""
        model = self._accelerator.unwrap_model(placed.wrapped, keep_fp32_wrapper=False)
        model.set_router_training("off")
        if self._accelerator.is_main_process:
            write_averaged(target, model, ema, shift, cache)


class Sharded:
    """Ranks share weights by FSDP2, and where `cp` is above 1 the tokens of their clips too.

    Args:
        accelerator: of the run.
        parallel: degrees.
    """

    save = staticmethod(save_sharded)
    """Write a checkpoint; all ranks call it."""

    def __init__(self, accelerator: Accelerator, parallel: ParallelConfig) -> None:
        self._accelerator = accelerator
        self._mesh = make_mesh(
            parallel.copies(accelerator.num_processes),
            parallel.dp_shard,
            parallel.cp,
            device_type=accelerator.device.type,
        )
        self.data_ranks = accelerator.num_processes // parallel.cp
        self.data_rank = self._mesh.get_local_rank(
            DP_REPLICATE
        ) * parallel.dp_shard + self._mesh.get_local_rank(DP_SHARD)
        self.saves_alone = False

    def place(self, model: nn.Module, settings: OptimizerConfig) -> Placed:
        """As `Replicated`; the model's parameters become DTensors."""
        half = torch.bfloat16 if self._accelerator.mixed_precision == "bf16" else None
        if getattr(model, "keeps_dtypes", False):
            # One block after another comes to the device, which may not hold the whole model.
            shard_weights(model, self._mesh)
        else:
            parallelize(model.to(self._accelerator.device), self._mesh)
            shard_weights(model, self._mesh, half)
        # The model's output is one, and the loss changes it in no place.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
        optimizer = adamw(model, settings)
        return Placed(model, optimizer, self._accelerator.prepare(optimizer))

    def computing(self) -> AbstractContextManager[Any]:
        """Around a forward pass."""
        return self._accelerator.autocast()

    def newest(self, folder: Path) -> Path | None:
        """The newest whole checkpoint, as the main process finds it."""
        found = told_by_main(lambda: str(newest_checkpoint(folder) or ""))
        return Path(found) if found else None

    def restore(self, path: Path, model: Any, ema: EMAModel, optimizer: Any) -> None:
        """Put a run back to a checkpoint of any number of ranks."""
        if is_sharded(path):
            restore_shards(model, ema, optimizer, path)
        else:
            _restore_whole(path, model, ema, optimizer)

    def save_pipeline(
        self, target: Path, placed: Placed, ema: EMAModel, shift: float, cache: LatentCache | None
    ) -> None:
        """Write the pipeline with the averaged weights, gathered by the main process, and the
        encoders of a cache."""
        model = placed.wrapped
        main = self._accelerator.is_main_process
        averaged = gathered_average(model, ema, keep=main)
        if main:
            write_pipeline(target, _model_of(model, averaged), shift, cache)


def _restore_whole(path: Path, model: Any, ema: EMAModel, optimizer: Any) -> None:
    """Put a run back to a checkpoint that is read whole."""
    groups, _ = load_checkpoint(path)
    restore_run(model, ema, optimizer, groups)


def _model_of(
    model: FreqFormerTransformer3DModel, weights: dict[str, Tensor]
) -> FreqFormerTransformer3DModel:
    """A model of the same settings with these parameters, on the CPU."""
    made: Any = type(model).from_config(model.config)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.copy_(weights[name])
    return made


def placement_for(parallel: ParallelConfig, accelerator: Accelerator) -> Replicated | Sharded:
    """Where a run's weights and clips are.

    Raises:
        ValueError: for degrees that don't fit the number of processes.
    """
    if parallel.cp == parallel.dp_shard == 1:
        return Replicated(accelerator)
    return Sharded(accelerator, parallel)
