"""The Gluon kernels compile for Hopper, and what their machine code must and must not hold.

Gluon has no interpreter: what the kernels compute is tested on a GPU, tests/gpu.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from tests.support.compilers import Compilers

pytest.importorskip("triton")

SHARED = 227 * 1024
"""Bytes of shared memory that one program of a Hopper GPU can have."""
REGISTERS = 168
"""65,536 registers over 12 warps, in steps of 8; warps hand them on among themselves."""
SPILLED = {
    ("windows", "attention_kernel"): 0,
    ("default", "attention_kernel"): 160,
    ("default, backward", "query_grads_kernel"): 16,
    ("default, backward", "video_grads_kernel"): 16,
    ("default, head_dim 96, backward", "attention_kernel"): 160,
    ("default, head_dim 96, backward", "query_grads_kernel"): 16,
    ("default, head_dim 96, backward", "video_grads_kernel"): 64,
    ("default, ragged, backward", "attention_kernel"): 160,
    ("default, ragged, backward", "query_grads_kernel"): 16,
    # Statistics of ragged tiles come by pointers, and wait for the products in registers.
    ("default, ragged, backward", "video_grads_kernel"): 64,
    ("windows, narrow, backward", "query_grads_kernel"): 0,
    ("everything", "attention_kernel"): 160,
    ("everything", "query_grads_kernel"): 0,
    ("everything", "video_grads_kernel"): 0,
}
"""Most bytes of registers in memory; but for that case all of them of the bookkeeping between
tasks."""
PRODUCTS = {"attention_kernel": 64, "query_grads_kernel": 40, "video_grads_kernel": 48}
"""Least instructions that multiply, of both consumers."""


COMPILERS = Compilers("tests.support.compile_only")


@pytest.fixture(scope="module", autouse=True)
def _end_compilers() -> Iterator[None]:
    yield
    COMPILERS.close()


@cache
def launched(name: str) -> list[dict[str, Any]]:
    """Facts about the kernel of every launch of a case, of those that are told of in SPILLED."""
    kernels = [kernel for case, kernel in SPILLED if case == name]
    return COMPILERS.ask("90", name, kernels or list(PRODUCTS))


def compiled(name: str) -> dict[str, Any]:
    """The same by the kernels' names."""
    return {kernel["name"]: kernel for kernel in launched(name)}


@pytest.mark.parametrize(("name", "kernel"), SPILLED)
def test_it_compiles_for_hopper(name: str, kernel: str) -> None:
    found = compiled(name)[kernel]
    assert "error" not in found
    assert found["shared"] <= SHARED
    assert found["registers"] <= REGISTERS
    assert found["spilled"] <= SPILLED[name, kernel]
    instructions = found["instructions"]
    assert instructions["HGMMA"] >= PRODUCTS[kernel]  # of whole warp groups
    assert instructions["UTMALDG"] >= 4  # blocks that come by the tensor memory accelerator
    assert instructions["USETMAXREG"] >= 4  # registers that go from the producer to consumers
    assert "HMMA" not in instructions  # no product of single warps


@pytest.mark.parametrize("name", [name for name, kernel in SPILLED if "query_grads" in kernel])
def test_factors_of_every_step_are_kept(name: str) -> None:
    """NVIDIA's assembler of CUDA 12.8 once put ds where output gradients were: all gradients of
    queries were wrong from a task's second block of keys on."""
    assert compiled(name)["query_grads_kernel"]["overwritten"] == 0


def test_nothing_is_compiled_anew_for_another_size() -> None:
    """Three sizes, as `tests/ops/test_compiled_launches.py` has them of Triton's kernels."""
    kernels = launched("sizes")
    assert [kernel["name"] for kernel in kernels] == 3 * list(PRODUCTS)
    for name in PRODUCTS:
        assert len({kernel["hash"] for kernel in kernels if kernel["name"] == name}) == 1, name
