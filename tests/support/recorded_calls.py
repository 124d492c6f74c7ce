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
PRODUCTS = (
    torch.ops.aten.mm.default,
    torch.ops.aten.mm.out,
    torch.ops.aten.addmm.default,
    torch.ops.aten.addmm.out,
    torch.ops.aten.addmm_.default,
)
SORTED = (
    torch.ops.aten.index_select.default,
    torch.ops.aten.clone.default,
    torch.ops.aten.cat.default,
)
"""What makes of a weight one in another order, which is the layer's too."""
PROJECTIONS = ("to_q", "to_k", "to_v", "gates", "to_out")


class RecordedCalls(TorchDispatchMode):
    """While it is entered, `calls` gets a name for each, once for products of one layer that follow
    one another; products that give gradients of weights have none."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.calls: list[str] = []
        parts = {name: getattr(layer, name, None) for name in PROJECTIONS}
        if isinstance(parts["to_out"], nn.ModuleList):  # with dropout, in diffusers
            parts["to_out"] = parts["to_out"][0]
        self._names = {
            _memory(part.weight): name
            for name, part in parts.items()
            if isinstance(part, nn.Linear)
        }
        self._kept: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in EXCHANGES:
            self.calls.append(EXCHANGES[func])
        if func in PRODUCTS:
            name = self._names.get(_memory(args[-1]))
            if name is not None and self.calls[-1:] != [name]:
                self.calls.append(name)
        out = func(*args, **(kwargs or {}))
        if func in SORTED:
            first = args[0] if isinstance(args[0], torch.Tensor) else args[0][0]
            if _memory(first) in self._names:
                self._names[_memory(out)] = self._names[_memory(first)]
                self._kept.append(out)  # else other tensors would come to lie there
        return out


def _memory(x: torch.Tensor) -> int:
    """Where a tensor lies; 0 of what only stands for one, as diffusers' collectives return."""
    plain = type(x) in (torch.Tensor, nn.Parameter)
    return x.untyped_storage().data_ptr() if plain else 0
