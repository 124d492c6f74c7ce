"""Names that changed: the old one works for one more release, and a FutureWarning names the new
one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import wraps
from importlib import import_module
from typing import Any, TypeVar

Called = TypeVar("Called", bound=Callable[..., Any])
Record = TypeVar("Record", bound=type)


def warn_renamed(old: str, new: str, *, stacklevel: int = 3) -> None:
    """Warn that `old` is called `new` now.

    Args:
        old, new: as the user wrote it, and should write it.
        stacklevel: as in `warnings.warn`; 3 is the caller of the caller.
    """
    text = f"{old} is now {new}; the old name works for one more release: use the new one"
    warnings.warn(text, FutureWarning, stacklevel=stacklevel)


def renamed_arguments(**names: str) -> Callable[[Called], Called]:
    """A decorator that passes arguments by their old names on under the new ones.

    Args:
        names: new name of every old one.
    """

    def decorated(function: Called) -> Called:
        @wraps(function)
        def call(*given: Any, **named: Any) -> Any:
            for old in names.keys() & named.keys():
                new = names[old]
                if named.get(new) is not None:
                    raise ValueError(
                        f"{old} is {named[old]!r} and {new} {named[new]!r}; one of them is "
                        f"allowed: {old} is the old name of {new}, leave it out"
                    )
                warn_renamed(old, new)
                named[new] = named.pop(old)
            return function(*given, **named)

        return call  # type: ignore[return-value]

    return decorated


def renamed_fields(**names: str) -> Callable[[Record], Record]:
    """A class decorator by which a record is made by old names of its fields too.

    Args:
        names: new name of every old one.
    """

    def decorated(record: Record) -> Record:
        record.__init__ = renamed_arguments(**names)(record.__init__)
        return record

    return decorated


def renamed_keys(values: Mapping[str, Any], names: Mapping[str, str], where: str) -> dict[str, Any]:
    """The values of a file with old keys replaced by the new ones, in the same order.

    Args:
        values: by key.
        names: new key of every old one.
        where: names the keys' place in the warning, like `run.` for `run.old`.

    Raises:
        ValueError: where both the old and the new key of a pair are there.
    """
    made: dict[str, Any] = {}
    for key, value in values.items():
        new = names.get(key, key)
        if new != key:
            if new in values:
                raise ValueError(
                    f"{where}{key} and {where}{new} are both there; one of them is allowed: "
                    f"{key} is the old name of {new}, remove it"
                )
            warn_renamed(f"{where}{key}", f"{where}{new}", stacklevel=4)
        made[new] = value
    return made


def moved_names(module: str, places: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a module whose names moved.

    Args:
        module: its name.
        places: full new name of every old one, like `package.module.Name`.
    """

    def find(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn_renamed(f"{module}.{name}", places[name])
        home, _, new = places[name].rpartition(".")
        return getattr(import_module(home), new)

    return find
