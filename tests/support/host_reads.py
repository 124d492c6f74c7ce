"""Where the host asks tensors for values: on a GPU it would wait there."""

from __future__ import annotations

import traceback
from collections import Counter
from contextlib import ExitStack
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

PACKAGES = ("freqformer/", "accelerate/", "diffusers/", "torch/optim/", "torch/nn/utils/")
METHODS = ("tolist", "cpu", "numpy")
"""Of tensors, which say what they are before anything is dispatched."""
OPERATIONS = ("_local_scalar_dense", "nonzero", "masked_select", "unique")


class HostReads:
    """Notes whoever asks, inside a `with`, by file and function. Tensors that are on the CPU even
    where there is a GPU look alike, so a test names the code whose tensors aren't."""

    def __init__(self) -> None:
        self.by_place: Counter[str] = Counter()
        self._held = ExitStack()

    def note(self) -> None:
        """One more, of the code that runs now."""
        self.by_place[_place()] += 1

    def __enter__(self) -> HostReads:
        self._held.enter_context(_Methods(self))
        self._held.enter_context(_Operations(self))
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()


class _Methods(TorchFunctionMode):
    def __init__(self, reads: HostReads) -> None:
        super().__init__()
        self._reads = reads

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in METHODS:
            self._reads.note()
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    def __init__(self, reads: HostReads) -> None:
        super().__init__()
        self._reads = reads

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        # Whoever picks by a mask must know how many there are.
        picks = name == "index" and any(
            place is not None and place.dtype == torch.bool for place in args[1]
        )
        if picks or name.startswith(OPERATIONS):
            self._reads.note()
        return func(*args, **(kwargs or {}))


def _place() -> str:
    """File and function of the innermost code that is none of torch's own plumbing."""
    for frame in reversed(traceback.extract_stack()):
        for package in PACKAGES:
            _, found, rest = frame.filename.rpartition(package)
            if found and "tests/" not in rest:
                return f"{package}{rest}:{frame.name}"
    return "elsewhere"
