"""Frozen weights that wait in the computer's memory, and are on the GPU while their block runs.

A block's weights come before it runs, in its forward pass and when its activations are computed
again in the backward, and are dropped after it: they never change, so nothing goes back. Those of
the block that follows are copied meanwhile, on a stream of their own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class _Place(NamedTuple):
    """Where a parameter belongs."""

    module: nn.Module
    name: str


class _Copied(NamedTuple):
    """Weights of a block on the GPU."""

    weights: list[Tensor]
    done: Any
    """The event after which they are there; None where copying waits."""


class OffloadedBlocks:
    """Takes the frozen weights of some blocks off the model, which keeps empty ones in their place.

    Whatever moves the model moves what is left of it. Without checkpointing of activations nothing
    is saved: the backward would hold every block's weights.

    Args:
        blocks: in the order in which they run, with their trained parameters, which stay.
    """

    def __init__(self, blocks: list[nn.Module]) -> None:
        self.places = [_frozen(block) for block in blocks]
        self.waiting = [[_take(place) for place in places] for places in self.places]
        """Weights of every block in the computer's memory, pinned where there is a GPU."""
        self._copied: dict[int, _Copied] = {}
        self._stream: Any = None
        self.hooks = [
            hook
            for number, block in enumerate(blocks)
            for hook in (
                block.register_forward_pre_hook(lambda *_, at=number: self._bring(at)),
                block.register_forward_hook(lambda *_, at=number: self._drop(at), always_call=True),
            )
        ]

    def _bring(self, number: int) -> None:
        """Before a block runs."""
        device = self._device(number)
        copied = self._copied.pop(number, None) or self._copy(number, device)
        if copied.done is not None:
            torch.cuda.current_stream(device).wait_event(copied.done)
        for place, weight in zip(self.places[number], copied.weights, strict=True):
            if copied.done is not None:
                weight.record_stream(torch.cuda.current_stream(device))
            place.module._parameters[place.name] = nn.Parameter(weight, requires_grad=False)
        following = number + (-1 if _in_backward() else 1)
        if 0 <= following < len(self.places) and following not in self._copied:
            self._copied = {following: self._copy(following, device)}

    def _drop(self, number: int) -> None:
        """After a block ran, well or not. What autograd needs of the weights it holds itself."""
        device = self._device(number)
        for place in self.places[number]:
            _empty(place, device)

    def _copy(self, number: int, device: torch.device) -> _Copied:
        waiting = self.waiting[number]
        if device.type != "cuda":
            return _Copied([weight.to(device, copy=True) for weight in waiting], None)
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        with torch.cuda.stream(self._stream):
            weights = [weight.to(device, non_blocking=True) for weight in waiting]
            return _Copied(weights, self._stream.record_event())

    def _device(self, number: int) -> torch.device:
        place = self.places[number][0]
        return place.module.get_parameter(place.name).device


def _in_backward() -> bool:
    """Whether a backward pass is computing activations again: blocks then run last to first."""
    return torch._C._current_graph_task_id() != -1


def _frozen(block: nn.Module) -> list[_Place]:
    return [
        _Place(module, name)
        for module in block.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if not parameter.requires_grad
    ]


def _take(place: _Place) -> Tensor:
    """A parameter's values, in place of which an empty one stays."""
    weight = place.module.get_parameter(place.name).detach().cpu()
    _empty(place, weight.device)
    return weight.pin_memory() if torch.cuda.is_available() else weight


def _empty(place: _Place, device: torch.device) -> None:
    held = place.module.get_parameter(place.name)
    left = torch.empty(0, dtype=held.dtype, device=device)
    place.module._parameters[place.name] = nn.Parameter(left, requires_grad=False)
