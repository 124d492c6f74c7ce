"""What `peers.py` gives its kernels, by group, the most important first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from peers_rows import Peer, kind_of

UNIFORM = "uniform lists"
"""The work of a group that rates of others are shares of."""
NATTEN_WINDOW: dict[str, Any] = {
    "grid": [30, 48, 80],
    "heads": 24,
    "head_dim": 128,
    "tile": [2, 8, 8],
    "window": [18, 24, 24],
    "stride": [16, 8, 8],
}
PUBLISHED = {
    "what": "published by NATTEN's authors, not measured here: forward, (30, 48, 80) x 24 heads of "
    "128, window (18, 24, 24), stride (16, 8, 8)",
    "gpu": "H100",
    "ms": {"NATTEN, its kernel": 23.4, "NATTEN with permutation": 29.1, "cuDNN, dense": 283.0},
}


@dataclass(frozen=True)
class Group:
    """Works whose rows are timed in the same rounds."""

    title: str
    works: dict[str, dict[str, Any]]

    @property
    def size(self) -> tuple[int, int]:
        """Tokens and heads, the same in all works."""
        told = next(iter(self.works.values()))
        return math.prod(told["grid"]), told["heads"]

    def of(self, peer: Peer) -> dict[str, dict[str, Any]]:
        """The works that a peer takes."""
        return {name: told for name, told in self.works.items() if kind_of(told) in peer.takes}

    def row(self, work: str, peer: str) -> str:
        """What a row is called."""
        return peer if len(self.works) == 1 else f"{work}: {peer}"


def _random(density: float, frames: int = 16) -> Group:
    told = {
        "kind": "random",
        "grid": [frames, 64, 64],
        "heads": 8,
        "head_dim": 128,
        "tile": [4, 4, 8],
        "density": density,
    }
    return Group(f"{frames * 4096:,} x 8, {100 * density:g}% of blocks", {"lists": told})


def _layers(size: dict[str, Any], tile: list[int], **changed: int) -> Group:
    works = {UNIFORM: {**size, "kind": "random", "tile": tile, "density": 0.1, "ours": True}}
    for name in ("default", "paper"):
        works[name] = {**size, "kind": "layer", "config": name, "changed": changed}
    return Group("queries of whole layers", works)


def _windows(told: dict[str, Any]) -> Group:
    works = {kind: {**told, "kind": kind} for kind in ("window", "own window")}
    return Group("window of NATTEN", works)


GROUPS = (
    _random(0.1),
    _random(1.0),
    _random(0.05),
    _layers({"grid": [30, 48, 80], "heads": 24, "head_dim": 128}, [2, 8, 8]),
    _windows(NATTEN_WINDOW),
    _random(0.25),
    _random(0.025),
    _random(0.1, frames=32),
    _random(0.1, frames=8),
    _random(0.1, frames=64),
)
_TINY: dict[str, Any] = {"grid": [2, 8, 16], "heads": 1, "head_dim": 16, "tile": [2, 8, 8]}
QUICK_GROUPS = (
    Group("tiny, 50% of blocks", {"lists": {**_TINY, "kind": "random", "density": 0.5}}),
    Group("tiny, 100% of blocks", {"lists": {**_TINY, "kind": "random", "density": 1.0}}),
    _layers({"grid": [2, 8, 16], "heads": 3, "head_dim": 16}, [2, 8, 8], mid_tiles=1),
    _windows({**_TINY, "grid": [2, 8, 32], "window": [2, 8, 24], "stride": [2, 8, 8]}),
)
