"""What torch.compile need not look into."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from operator import index
from typing import Any, ParamSpec, TypeVar

import torch

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class PlainFields:
    """Base of frozen dataclasses whose fields are plain values, which a traced call can take
    apart."""


def untraced(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """The function, at which compiled code breaks off and goes on after it."""
    disabled: Any = torch.compiler.disable(function)
    return disabled


def constant_result(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """The function, whose result a compiled graph takes as a constant of its arguments.

    As `torch.compiler.assume_constant_result`, but arguments may be `PlainFields` and whole numbers
    that differ between calls, each a graph of its own. torch 2.11 can't hand those to such a
    function: a traced call takes them apart into constants, and they are put together again behind
    it. Of one function a graph on torch 2.11 can hold one result, if it is a tensor: return a tuple
    of all that are needed.
    """

    def from_fields(args: tuple, kwargs: tuple) -> Result:
        named = {name: _put_together(value) for name, value in kwargs}
        return function(*map(_put_together, args), **named)  # type: ignore[call-arg]

    # torch 2.11 tells results in a graph apart by this name.
    from_fields.__code__ = from_fields.__code__.replace(co_name=function.__name__)
    # What torch.compiler.assume_constant_result does, but that imports torch._dynamo, sympy and
    # Triton first: seconds that a program which compiles nothing would wait for.
    from_fields._dynamo_marked_constant = True  # type: ignore[attr-defined]

    @wraps(function)
    def called(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        if torch.compiler.is_compiling():
            named = tuple((name, _taken_apart(value)) for name, value in kwargs.items())
            return from_fields(tuple(_taken_apart(value) for value in args), named)
        return function(*args, **kwargs)

    return called


def _taken_apart(value: Any) -> tuple[type | None, Any]:
    """The class of a dataclass and its fields in the order in which it takes them, or None and the
    value."""
    if isinstance(value, PlainFields):
        names = type(value).__match_args__  # type: ignore[attr-defined]
        return type(value), tuple(_constant(getattr(value, name)) for name in names)
    return None, _constant(value)


def _constant(value: Any) -> Any:
    # A traced whole number may stand for any; as an index it is itself.
    return index(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _put_together(parts: tuple[type | None, Any]) -> Any:
    made, value = parts
    return value if made is None else made(*value)
