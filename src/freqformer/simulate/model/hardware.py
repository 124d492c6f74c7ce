"""What a machine can do at most: figures of data sheets, as data. What kernels achieve of it is
efficiency."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freqformer.simulate.model.profiles import (
    ProfileError,
    check_number,
    check_whole,
    read_profile,
    record,
    shown,
)


@dataclass(frozen=True)
class Interconnect:
    """Links of one GPU, bytes per second in one direction, and seconds a message takes at least."""

    node_gpus: int
    """GPUs that share the fast links."""
    node_bandwidth: float
    node_latency_s: float
    network_bandwidth: float
    """Between nodes, per GPU."""
    network_latency_s: float

    def __post_init__(self) -> None:
        check_whole("node_gpus", self.node_gpus, 1, 4096)
        for name in ("node_bandwidth", "network_bandwidth"):
            check_number(name, getattr(self, name), 1e6, 1e14)
        for name in ("node_latency_s", "network_latency_s"):
            check_number(name, getattr(self, name), 0, 1)


@dataclass(frozen=True)
class Hardware:
    """One machine: a GPU, or a CPU with all its cores.

    Raises:
        ProfileError: for a value out of range.
    """

    name: str
    title: str
    element_size: int
    """Bytes of a tensor's element: 2 for bfloat16, 4 for float32."""
    matrix_flops: float
    """FLOP/s of dense matrix products in that type."""
    vector_flops: float
    """FLOP/s of float32 arithmetic outside matrix units."""
    memory_bandwidth: float
    """Bytes per second of main (GPU) memory."""
    memory_bytes: float
    l2_bytes: float
    """The largest cache that all processors share."""
    processors: int
    """Streaming multiprocessors, compute units or cores."""
    launch_s: float
    """Seconds from one launch to the next when launches do nothing."""
    interconnect: Interconnect | None
    sources: dict[str, str]
    """Where each figure comes from."""

    def __post_init__(self) -> None:
        if self.element_size not in (2, 4):
            raise ProfileError(f"element_size is {shown(self.element_size)}; 2 and 4 are allowed")
        for name, low, high in (
            ("matrix_flops", 1e9, 1e18),
            ("vector_flops", 1e8, 1e18),
            ("memory_bandwidth", 1e8, 1e15),
            ("memory_bytes", 1e8, 1e15),
            ("l2_bytes", 1e3, 1e12),
            ("launch_s", 0, 1),
        ):
            check_number(name, getattr(self, name), low, high)
        check_whole("processors", self.processors, 1, 1_000_000)


def load_hardware(name: str | Path) -> Hardware:
    """The hardware profile of this name, or of a JSON file.

    Raises:
        ProfileError: for an unknown name, a missing field or a value out of range.
    """
    short, values = read_profile("hardware", name)
    links: Any = values.get("interconnect")
    if isinstance(links, dict):
        values["interconnect"] = record(Interconnect, links, f"{short}, interconnect")
    elif links is not None:
        raise ProfileError(
            f"profile {short}: interconnect is {shown(links)}; an object or null is allowed"
        )
    return record(Hardware, values, short, name=short)
