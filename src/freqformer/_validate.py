"""Checks of single arguments: a ValueError that names the argument, what came, what is allowed and
the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

Kind = TypeVar("Kind")


def check_whole(name: str, value: Any, least: int, remedy: str = "") -> None:
    """Raise ValueError unless value is an int of at least `least`; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(
            f"{name} is {value!r}; whole numbers from {least} up are allowed{_behind(remedy)}"
        )


def check_number(name: str, value: Any, low: float, high: float, remedy: str = "") -> None:
    """Raise ValueError unless value is an int or float from `low` to `high`; NaN, True and False
    are none."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # The comparison is False for NaN, so NaN is refused too.
    if not number or not low <= value <= high:
        raise ValueError(
            f"{name} is {value!r}; numbers from {low:g} to {high:g} are allowed{_behind(remedy)}"
        )


def check_choice(name: str, value: Any, allowed: Sequence[Any], remedy: str = "") -> None:
    """Raise ValueError unless value is one of `allowed`, of the same type too: 1 is not True."""
    if not any(type(value) is type(one) and value == one for one in allowed):
        choices = ", ".join(map(str, allowed))
        raise ValueError(f"{name} is {value!r}; choose one of {choices}{_behind(remedy)}")


def check_kind(name: str, value: Any, kind: type[Kind], remedy: str) -> None:
    """Raise ValueError unless value is a `kind`, saying how to make one."""
    if not isinstance(value, kind):
        shown = (
            f"a {type(value).__name__}"
            if isinstance(value, Tensor | torch.nn.Module)
            else f"{value!r}"
        )
        raise ValueError(f"{name} is {shown}; a {kind.__name__} is allowed: {remedy}")


def on_host(x: Tensor) -> bool:
    """Whether values of x can be looked at without waiting for a device and outside of any trace or
    transform."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    # Subclasses such as FakeTensor hold no values, and a mapped tensor holds several.
    return type(x) in (Tensor, torch.nn.Parameter) and not mapped(x)


def mapped(x: Tensor) -> bool:
    """Whether `torch.vmap` maps over x."""
    if torch.compiler.is_compiling():
        return False
    functorch = torch._C._functorch  # type: ignore[attr-defined]
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_batchedtensor(x):
            return True
        x = functorch.get_unwrapped(x)
    return False


def _behind(remedy: str) -> str:
    return f": {remedy}" if remedy else ""
