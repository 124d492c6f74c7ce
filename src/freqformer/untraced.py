"""A call that torch.compile leaves alone. Its decorator imports torch._dynamo: import this while something is traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


@torch.compiler.disable()
def call(function: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
    """What the function gives, computed outside every graph."""
    return function(*args, **kwargs)
