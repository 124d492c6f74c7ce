"""A training step waits for no device and copies nothing to it, as a CUDA graph needs; told without
a GPU.

Tensors on the meta device stand for the GPU's: the fused operations know their outputs there, and
every operation between them passes by.
"""

from __future__ import annotations

import contextlib
import traceback
from typing import Any

import pytest
import torch
from benchmarks.quality import trainer as quality_trainer
from benchmarks.quality.runs import Run
from benchmarks.quality.sizes import Size
from benchmarks.quality.trainer import Trainer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("triton")

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal.default")


class Watch(TorchDispatchMode):
    """Notes what waits for the device, or takes tensors of the host and of the device together."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.seen.add(str(func))
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        devices = {x.device.type for x in tensors}
        # A number of the host may join in: it travels with the launch.
        mixed = {x.device.type for x in tensors if x.ndim}
        if kwargs.get("device") is not None and "copy" in str(func):
            mixed = mixed | devices | {torch.device(kwargs["device"]).type}
        waits = "meta" in devices and any(name in str(func) for name in WAITS)
        if waits or len(mixed) > 1:
            where = [
                frame for frame in traceback.extract_stack() if "/freqformer/" in frame.filename
            ]
            self.found.append(f"{func} at {where[-1] if where else 'the backward pass'}")
        return func(*args, **kwargs)


def watched(monkeypatch: pytest.MonkeyPatch, name: str) -> Watch:
    """The second step of a variant, with what the first one has left in caches."""
    monkeypatch.setattr(torch, "autocast", lambda *given, **named: contextlib.nullcontext())
    # The fused optimizer is torch's own and made to be captured; it knows no meta tensors.
    monkeypatch.setattr(
        quality_trainer, "_adamw", lambda model, rate: torch.optim.SGD(model.parameters(), lr=0.0)
    )
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: None)
    trainer = Trainer(Run(name, 0, 3, Size(batch=2, layers=1)), torch.device("meta"))
    trainer.advance()
    with Watch() as watch:
        trainer.advance()
    return watch


CAPTURED = (
    "dense",
    "window",
    "video_sparse_attention",
    "weighed_summaries_times_gate",
    "soft_routing_alone",
    "window_and_linear",
    "best_tiles_and_linear",
    "soft_routing_by_log_snr",
    "soft_routing_band_gains",
    "soft_routing_few_tiles_in_noise",
)
ROUTED = (
    "thirds",
    "thirds_own_band",
    "thirds_by_schedule",
    "paper",
    "paper_band_gains",
    "hard_routing_and_low",
)


@pytest.mark.parametrize("name", CAPTURED + ROUTED)
def test_a_step_can_be_captured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = watched(monkeypatch, name)
    assert watch.found == []
    fused = {"freqformer.attention.default", "freqformer.attention_backward.default"}
    assert fused <= watch.seen or name == "dense"


def test_a_copy_from_the_host_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    advance = Trainer.advance

    def copying(self: Trainer) -> None:
        self.rate.add_(torch.ones(3).to("meta").sum())
        advance(self)

    monkeypatch.setattr(Trainer, "advance", copying)
    assert "_to_copy" in watched(monkeypatch, "window").found[0]
