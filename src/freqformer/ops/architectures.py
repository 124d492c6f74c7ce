"""What the Triton launches know of each GPU architecture: the one table of block sizes, warps and
stages.

The row of sm_90 is measured on an H200 (docs/performance.md). No other row has run on its GPU: each
is chosen by what Triton's compiler makes of it, so that it fits in shared memory and keeps its
registers; tests/ops/test_compiled_launches.py holds every row to that.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch

logger = logging.getLogger(__name__)

KIB = 1024
FIRST_WITH_MATRIX_UNITS = 80
"""Of NVIDIA's architectures that Triton multiplies 16 bits on by matrix units, sm_80."""


class Step(NamedTuple):
    """What one step of a kernel's loop multiplies, and how the kernel is compiled."""

    query: int
    """Queries of a block."""
    key: int
    """Keys of a block."""
    warps: int
    """Of a program: 64 threads each on an AMD GPU, 32 elsewhere."""
    stages: int
    """Steps whose loads are under way at once."""


class Steps(NamedTuple):
    """The steps of the attention's launches for one dtype and head_dim."""

    forward: Step
    """A program holds a block of queries."""
    query_grads: Step
    """A program holds a block of queries and one of their gradients."""
    key_grads: Step
    """A program holds a block of keys, one of values, and the gradients of both."""


@dataclass(frozen=True)
class Architecture:
    """A row of the table."""

    name: str
    """As compilers call it."""
    shared_memory: int
    """Bytes that one program can have; AMD calls it LDS."""
    descriptors: bool
    """Whether blocks are read by tensor descriptors (TMA), or by pointers."""
    half: Mapping[int, Steps]
    """In 16 bits, by the largest head_dim that they serve, ascending."""
    without_descriptors: str | None = None
    """The row of buffers that no descriptor counts, where there are descriptors."""

    @property
    def is_amd(self) -> bool:
        return self.name.startswith("gfx")

    @property
    def is_hopper(self) -> bool:
        return self.name == "sm_90"

    def warps(self, threads: int) -> int:
        """Warps that have so many threads together."""
        return threads // (64 if self.is_amd else 32)

    def steps(self, dtype: torch.dtype, head_dim: int) -> Steps:
        """The steps of a call.

        Args:
            dtype: of queries, keys and values, 16 or 32 bits.
            head_dim: at most 256.
        """
        table = FLOAT32 if dtype == torch.float32 else self.half
        return next(steps for largest, steps in table.items() if head_dim <= largest)

    def by_pointers(self) -> Architecture:
        """The row itself, or with descriptors the one that stands in for it without."""
        if self.without_descriptors is None:
            return self
        return ROWS[self.without_descriptors]


FLOAT32 = {
    # Without matrix units the operands of a product live in registers: small blocks, or they spill.
    64: Steps(Step(32, 64, 8, 1), Step(32, 16, 8, 1), Step(16, 32, 8, 1)),
    256: Steps(Step(32, 32, 8, 1), Step(32, 16, 8, 1), Step(16, 32, 8, 1)),
}
"""In 32 bits, on every architecture."""

_AMPERE = Architecture(
    "sm_80",
    shared_memory=163 * KIB,
    descriptors=False,
    half={
        64: Steps(Step(128, 64, 4, 3), Step(64, 64, 4, 2), Step(64, 64, 4, 2)),
        # Two programs a multiprocessor. Pointers of a block live in registers too, beside sums: a
        # step takes half the keys forward, and half the queries beside sums of key gradients.
        128: Steps(Step(128, 32, 8, 3), Step(64, 64, 4, 2), Step(32, 64, 4, 2)),
        256: Steps(Step(64, 32, 8, 2), Step(32, 32, 8, 2), Step(32, 32, 8, 2)),
    },
)
_SMALL_AMPERE = Architecture(
    "sm_86",
    shared_memory=99 * KIB,
    descriptors=False,
    half={
        64: Steps(Step(128, 64, 4, 2), Step(64, 64, 4, 2), Step(64, 64, 4, 2)),
        # One program a multiprocessor has shared memory, with gradients: it has eight warps.
        128: Steps(Step(128, 32, 8, 3), Step(64, 64, 8, 2), Step(64, 64, 8, 2)),
        256: Steps(Step(64, 32, 8, 2), Step(32, 32, 8, 2), Step(32, 32, 8, 2)),
    },
)
_HOPPER = Architecture(
    "sm_90",
    shared_memory=227 * KIB,
    descriptors=True,
    without_descriptors="sm_80",
    half={
        # A query is loaded with its gradient, and keys serve two products: 64 queries where the
        # forward has 128. Two float32 sums of 64 keys by 128 channels take 128 of the 255 registers
        # of each of 128 threads: what is left holds a block of logits and one of their gradients.
        128: Steps(Step(128, 64, 4, 2), Step(64, 64, 4, 2), Step(64, 64, 4, 2)),
        # Twice the channels take twice the warps, as sums lie in registers.
        256: Steps(Step(128, 64, 8, 2), Step(64, 64, 8, 2), Step(32, 64, 8, 2)),
    },
)
_BLACKWELL = Architecture(
    "sm_100",
    shared_memory=227 * KIB,
    descriptors=True,
    without_descriptors="sm_80",
    half={
        64: Steps(Step(128, 64, 4, 2), Step(64, 64, 4, 2), Step(64, 64, 4, 2)),
        # Sums lie in tensor memory, and are read into registers to be scaled: eight warps.
        128: Steps(Step(128, 64, 8, 2), Step(64, 64, 4, 2), Step(64, 64, 4, 2)),
        256: Steps(Step(64, 64, 8, 2), Step(64, 32, 8, 2), Step(32, 64, 8, 2)),
    },
)
_SMALL_BLACKWELL = Architecture(
    "sm_120",
    shared_memory=99 * KIB,
    descriptors=True,
    without_descriptors="sm_86",
    half={
        # Operands go through registers, as on Ampere, and descriptors leave fewer of them: small
        # blocks.
        64: Steps(Step(128, 64, 8, 2), Step(64, 32, 4, 2), Step(32, 64, 4, 2)),
        128: Steps(Step(128, 32, 8, 2), Step(32, 64, 8, 2), Step(64, 32, 8, 2)),
        256: Steps(Step(32, 32, 8, 2), Step(16, 32, 8, 2), Step(32, 16, 8, 2)),
    },
)
_CDNA3 = Architecture(
    "gfx942",
    shared_memory=64 * KIB,
    descriptors=False,
    half={
        64: Steps(Step(128, 64, 4, 2), Step(64, 32, 4, 2), Step(32, 64, 4, 2)),
        # Four warps of 64 threads have 512 registers a thread, eight have 256 and spill.
        128: Steps(Step(128, 64, 4, 2), Step(64, 32, 4, 2), Step(32, 64, 4, 2)),
        256: Steps(Step(64, 32, 4, 2), Step(32, 32, 4, 1), Step(32, 32, 4, 1)),
    },
)

ROWS = {
    row.name: row
    for row in (
        _AMPERE,
        _SMALL_AMPERE,
        replace(_SMALL_AMPERE, name="sm_89"),
        _HOPPER,
        _BLACKWELL,
        _SMALL_BLACKWELL,
        _CDNA3,
    )
}
"""Every architecture that has choices of its own, by name."""
_OLDER = Architecture("older than sm_80", 64 * KIB, descriptors=False, half=FLOAT32)


@lru_cache(maxsize=16)
def architecture_name(device: torch.device) -> str:
    """What compilers call a device's architecture, such as `sm_90` or `gfx942`; `cpu` for a CPU,
    which interprets. The one place where the launches ask a device."""
    if device.type != "cuda":
        return device.type
    if torch.version.cuda is None:
        return torch.cuda.get_device_properties(device).gcnArchName.partition(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def architecture(device: torch.device) -> Architecture:
    """The row of a device; the log says so, once, where another one's stands in for it."""
    return row_of(architecture_name(device))


@lru_cache(maxsize=16)
def row_of(name: str) -> Architecture:
    """The row of an architecture, or the nearest: of NVIDIA's the newest that isn't newer, of AMD's
    gfx942, whose memory none falls short of. The interpreter takes sm_90's.

    Args:
        name: as `architecture_name` gives it.
    """
    if name in ROWS:
        return ROWS[name]
    if name == "cpu":
        return _HOPPER
    row = _nearest(name)
    logger.info(
        "no block sizes were chosen for %s: Triton's launches take those of %s", name, row.name
    )
    return row


def _nearest(name: str) -> Architecture:
    if name.startswith("gfx"):
        return _CDNA3
    number = name.removeprefix("sm_")
    if not number.isdecimal():
        return _SMALL_AMPERE  # neither NVIDIA's nor AMD's: what asks for least
    if int(number) < FIRST_WITH_MATRIX_UNITS:
        return _OLDER
    known = {int(row.name.removeprefix("sm_")): row for row in ROWS.values() if not row.is_amd}
    return known[max(one for one in known if one <= int(number))]
