"""The accelerator of a run: its devices, its processes and its log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import distributed as dist

from freqformer._optional import needs
from freqformer.training.config import RunConfig
from freqformer.training.processes import check_launch

if TYPE_CHECKING:
    from accelerate import Accelerator


@contextmanager
def run_accelerator(output: str, run: RunConfig) -> Iterator[Accelerator]:
    """The accelerator of a run, which is ended at the end.

    Args:
        output: folder of the run, in which its log is.
        run: on what it trains.
    """
    with needs("train"):
        import tensorboard  # noqa: F401 - without it accelerate keeps no metrics, in silence
        from accelerate import Accelerator, DistributedDataParallelKwargs
        from accelerate.state import AcceleratorState

    # Before accelerate waits for processes that it can't reach.
    check_launch()
    # accelerate holds one precision per Python process until it is reset; a caller's own
    # accelerator stays as it is.
    owned = not AcceleratorState._shared_state
    # Who made the group of processes has more to do with it than this run.
    joined = dist.is_available() and dist.is_initialized()
    accelerator = Accelerator(
        mixed_precision="bf16" if run.precision == "bf16" else "no",
        gradient_accumulation_steps=run.accumulation,
        cpu=run.device == "cpu",
        log_with="tensorboard",
        project_dir=output,
        # A router that does not train, or a band that no head is in, leaves parameters without
        # gradient.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    failed = False
    try:
        yield accelerator
    except Exception:
        failed = True
        raise
    finally:
        # Others may wait for this process, which ends, and its launcher then stops them: to take
        # the group down would wait for them.
        if joined or (failed and accelerator.num_processes > 1):
            for tracker in accelerator.trackers:
                tracker.finish()
        else:
            accelerator.end_training()
        if owned:
            AcceleratorState._reset_state(reset_partial_state=True)
