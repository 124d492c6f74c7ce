"""The Gluon kernel compiles for Hopper, and what its machine code must and must not hold.

Gluon has no interpreter: what the kernel computes is tested on a GPU, tests/gpu.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("triton")

SHARED = 227 * 1024
"""Bytes of shared memory that one program of a Hopper GPU can have."""
REGISTERS = 168
"""65,536 registers over 12 warps, in steps of 8; warps hand them on among themselves."""
SPILLED = {"windows": 0, "default": 160, "default, ragged, backward": 160, "everything": 160}
"""Most bytes of registers in memory, all of them of the bookkeeping between tasks."""


def compiled(name: str) -> dict[str, Any]:
    """Facts about the attention kernel of a case."""
    environment = {key: x for key, x in os.environ.items() if key != "TRITON_INTERPRET"}
    ran = subprocess.run(
        [sys.executable, "-m", "tests.support.compile_only", "90", name],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    kernels = json.loads(ran.stdout.splitlines()[-1])
    return next(kernel for kernel in kernels if kernel["name"] == "attention_kernel")


@pytest.mark.parametrize("name", SPILLED)
def test_it_compiles_for_hopper(name: str) -> None:
    kernel = compiled(name)
    assert kernel["shared"] <= SHARED
    assert kernel["registers"] <= REGISTERS
    assert kernel["spilled"] <= SPILLED[name]
    instructions = kernel["instructions"]
    assert instructions["HGMMA"] >= 64  # products of whole warp groups
    assert instructions["UTMALDG"] >= 4  # blocks that come by the tensor memory accelerator
    assert instructions["USETMAXREG"] >= 4  # registers that go from the producer to consumers
    assert "HMMA" not in instructions  # no product of single warps
