"""Names that were renamed: the old ones still work, and say what they are called now."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

RENAMED = {
    "Calibration": "freqformer.simulate.model.efficiency.Efficiency",
    "load_calibration": "freqformer.simulate.model.efficiency.load_efficiency",
}
"""Where an old name's object is now."""
RENAMED_SETTINGS = {"calibration": "efficiency", "low_beside": "low_branch"}
"""Settings of `--set NAME=VALUE`, and what they are called now."""


def renamed(module: str, name: str) -> Any:
    """The object that had this name in `module`, with a warning that names the new one.

    Raises:
        AttributeError: for a name that never was there.
    """
    if name not in RENAMED:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    home, _, new = RENAMED[name].rpartition(".")
    # A warning points to who imports the name, behind this function and `__getattr__`.
    warn_renamed(f"{module}.{name}", f"freqformer.simulate.{new}", stacklevel=4)
    return getattr(import_module(home), new)


def warn_renamed(old: str, new: str, stacklevel: int = 3) -> None:
    """Warn that a name is an old one, which goes in the next release."""
    warnings.warn(
        f"{old} is called {new} now; the old name goes in the next release",
        FutureWarning,
        stacklevel=stacklevel,
    )
