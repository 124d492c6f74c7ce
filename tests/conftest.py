"""Run-time type checks of the package, one thread a process, and the same random numbers at every
run."""

from __future__ import annotations

import importlib.util
import os
import signal

# Before torch is imported, and for child processes too: the tensors of tests are small, and threads
# that wait for one another on busy cores made them 20 times slower. Set the variable to have more.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell without job control starts what runs in the background with Ctrl-C ignored, and children
# inherit that: tests of signals need it as a terminal gives it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
import torch

# GPU tests need pytest, torch and Triton alone.
if importlib.util.find_spec("hypothesis"):
    from hypothesis import settings

    settings.register_profile("freqformer", deadline=None, derandomize=True, database=None)
    settings.load_profile("freqformer")

CHECKED = [
    f"freqformer.{name}"
    for name in (
        "bands",
        "patterns",
        "routing",
        "ops.branches",
        "ops.parameters",
        "ops.tokens",
        "ops.block_sparse.api",
        "ops.block_sparse.eager",
        "ops.block_sparse.reference",
        "ops.merge.reference",
        "ops.prologue.reference",
    )
]
"""Modules whose annotations are enforced while tests run. Not those that check what users pass,
since their own errors are tested, nor those that Triton or torch.library compile from source."""
TYPE_CHECKS = all(importlib.util.find_spec(name) for name in ("beartype", "jaxtyping"))

if TYPE_CHECKS:
    import tests.support.typecheck  # noqa: F401  jaxtyping names it and expects it to be there
    from jaxtyping import install_import_hook

    install_import_hook(CHECKED, "tests.support.typecheck.check")


def pytest_report_header() -> str:
    return (
        "run-time type checks: "
        f"{'on' if TYPE_CHECKS else 'off, install beartype and jaxtyping for them'}"
    )


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
