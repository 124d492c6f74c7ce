"""What a layer that ranks share calls, in order: projections by name, `start` and `wait` of its
all-to-alls."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

EXCHANGES = {
    torch.ops._c10d_functional.all_to_all_single.default: "start",
    torch.ops._c10d_functional.wait_tensor.default: "wait",
}
PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
PROJECTIONS = ("to_q", "to_k", "to_v", "gates", "to_out")


class RecordedCalls(TorchDispatchMode):
    """While it is entered, `calls` gets a name for each; products that give gradients of weights
    have none."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.calls: list[str] = []
        parts = {name: getattr(layer, name, None) for name in PROJECTIONS}
        if isinstance(parts["to_out"], nn.ModuleList):  # with dropout, in diffusers
            parts["to_out"] = parts["to_out"][0]
        self._names = {
            part.weight.data_ptr(): name
            for name, part in parts.items()
            if isinstance(part, nn.Linear)
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in EXCHANGES:
            self.calls.append(EXCHANGES[func])
        if func in PRODUCTS:
            name = self._names.get(args[-1].data_ptr())
            if name is not None:
                self.calls.append(name)
        return func(*args, **(kwargs or {}))
