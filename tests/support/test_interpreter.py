"""The faster interpreter computes what Triton's does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")
if not triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET=1 is not set: kernels would need a GPU", allow_module_level=True)


def test_results_are_bit_for_bit_those_of_the_slow_one() -> None:
    """In a process of its own, whose interpreter nothing has changed yet."""
    command = [sys.executable, "-m", "tests.support.interpreted"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-3000:]
    told = done.stdout.split()
    assert told[:3] == ["same", "bits", "in"]
    assert {"out", "grad_query", "grad_summary_queries", "grad_by_token"} <= set(told[3:])
