"""What a call would launch on a GPU, counted on the CPU in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

NO_KERNEL = {
    "detach",
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "lift_fresh",
    "_unsafe_view",
}
"""PyTorch's operations that launch nothing, but for views."""
MOST = {
    "layer default": 6,
    "layer timestep": 5,
    "layer frozen": 4,
    "layer fixed gates": 4,
    "layer windows": 3,
}
"""What rows of benchmarks/layers.py may launch beside their projections."""
PROJECTIONS = {"addmm", "mm", "linear"}


class _Operations(TorchDispatchMode):
    """Notes PyTorch's operations that launch something."""

    def __init__(self, launched: list[str]) -> None:
        super().__init__()
        self.launched = launched

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        # What the package registers itself is counted by what it runs.
        if not func.is_view and name not in NO_KERNEL and "::" not in name:
            self.launched.append(name)
        return func(*args, **(kwargs or {}))


def launches(call: Callable[[], object], patch: pytest.MonkeyPatch) -> list[str]:
    """The names of what a call launches, in order: PyTorch's operations and Triton's kernels.

    The call runs once before, since tables of a plan are made once. Values on the host are not
    looked at, as those on a GPU aren't.
    """
    from triton.runtime.interpreter import GridExecutor

    launched: list[str] = []
    run = GridExecutor.__call__

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        launched.append(self.fn.__name__)
        with _disable_current_modes():  # the interpreter computes with PyTorch's operations
            return run(self, *args, **kwargs)

    with patch.context() as patched, torch.no_grad():
        patched.setattr(GridExecutor, "__call__", counted)
        for module in ("_validate", "attention.inputs", "ops.parameters"):
            patched.setattr(f"freqformer.{module}.on_host", lambda _: False)
        patched.setattr("freqformer.ops.fused.check_bands", lambda _: None)
        call()
        launched.clear()
        with _Operations(launched):
            call()
    return launched


def beside_projections(launched: list[str]) -> list[str]:
    """Of a layer's launches, those that are no projection."""
    return [name for name in launched if name not in PROJECTIONS]
