"""Checks of single arguments: a ValueError that names the argument, what came, what is allowed and
the remedy."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

Kind = TypeVar("Kind")


_shortened = reprlib.Repr()
_shortened.maxstring = _shortened.maxother = 100
_shortened.maxlevel = 3


def shown(value: Any) -> str:
    """A value as errors show it: cut short, since a file may hold megabytes in a field."""
    return _shortened.repr(value)


def check_whole(
    name: str, value: Any, least: int, remedy: str = "", *, most: int | None = None
) -> None:
    """Raise ValueError unless value is an int from `least` to `most`; True and False are none."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        extent = "up" if most is None else f"to {most:,}"
        raise ValueError(
            f"{name} is {shown(value)}; whole numbers from {least} {extent} are allowed"
            f"{_behind(remedy)}"
        )


def check_flag(name: str, value: Any) -> None:
    """Raise ValueError unless value is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {shown(value)}; True or False is allowed")


def check_positive(name: str, value: Any) -> None:
    """Raise ValueError for anything but a finite number above 0."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise ValueError(f"{name} is {shown(value)}; finite numbers above 0 are allowed")


def check_number(name: str, value: Any, low: float, high: float, remedy: str = "") -> None:
    """Raise ValueError unless value is an int or float from `low` to `high`; NaN, True and False
    are none."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # The comparison is False for NaN, so NaN is refused too.
    if not number or not low <= value <= high:
        raise ValueError(
            f"{name} is {shown(value)}; numbers from {low:g} to {high:g} are allowed"
            f"{_behind(remedy)}"
        )


def check_choice(name: str, value: Any, allowed: Sequence[Any], remedy: str = "") -> None:
    """Raise ValueError unless value is one of `allowed`, of the same type too: 1 is not True."""
    if not any(type(value) is type(one) and value == one for one in allowed):
        choices = ", ".join(map(str, allowed))
        raise ValueError(f"{name} is {shown(value)}; choose one of {choices}{_behind(remedy)}")


def check_kind(name: str, value: Any, kind: type[Kind], remedy: str) -> None:
    """Raise ValueError unless value is a `kind`, saying how to make one."""
    if not isinstance(value, kind):
        module = isinstance(value, Tensor | torch.nn.Module)
        what = f"a {type(value).__name__}" if module else f"{value!r}"
        raise ValueError(f"{name} is {what}; a {kind.__name__} is allowed: {remedy}")


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
