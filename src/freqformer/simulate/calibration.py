"""Old names of `freqformer.simulate.model.efficiency`: they work for one release, and warn."""

from __future__ import annotations

from typing import Any

from freqformer.simulate._renamed import renamed


def __getattr__(name: str) -> Any:
    return renamed(__name__, name)
