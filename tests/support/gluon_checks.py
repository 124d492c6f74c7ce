"""Small calls of the Gluon launches against float64, as a program: for faults put into them.

    python -m tests.support.gluon_checks [--compile] NAME...

runs `CHECKS` by name on a Hopper GPU and prints how it ended as JSON: `passed`, `failed` with the
check's name, or `broken` where the code doesn't even compile; status 0, 1 or 2. With --compile,
where no GPU is needed, the launches are compiled and nothing runs. References are computed on the
CPU, so that a kernel that never ends takes little time from checks that run beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any
from unittest import mock

import torch
from tests.support import attend_grads
from tests.support.attend_cases import AttendCase, check_case, expected, make_case
from tests.support.numerics import nan_filled_allocations
from torch import Tensor
from triton.compiler.errors import CompilationError

from freqformer import buffers
from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid
from freqformer.ops.backends import Launches
from freqformer.ops.block_sparse.gluon import launch, launch_backward
from freqformer.ops.block_sparse.records import AttentionOutputs
from freqformer.ops.block_sparse.tables import LaunchTables, launch_tables

PROGRAMS = 4
"""Of a launch, in place of one for each multiprocessor: each has many tasks, one after another."""
PATIENCE = 20
"""Seconds after which a launch counts as one that never ends."""


@dataclass(frozen=True)
class Check:
    """A call, and what is asked of it."""

    case: Callable[[], AttendCase]
    backward: bool = False
    """Whether gradients are checked, or outputs."""
    residual: bool = False
    """Whether what rounding took from the outputs is checked too."""


def _windows() -> AttendCase:
    """Tiles of 120 tokens each, and keys of tiles alone."""
    config = FreqFormerConfig(tile=(3, 5, 8), window=(1, 1, 3), summary_tokens=0)
    bands = torch.tensor([[2, 2, 3]])
    half = {"dtype": torch.bfloat16, "head_dim": 128}
    return make_case(Grid(6, 10, 32), config, bands=bands, token_order="tile", **half)


def _ragged() -> AttendCase:
    """Every band and kind of key, tiles of many sizes, two samples, text in parts."""
    config = FreqFormerConfig(
        mid_tiles=3, window=(1, 2, 2), summary_tokens=9, band_features="high_pass_values"
    )
    bands = torch.tensor([[0, 1, 2, 3], [2, 0, 1, 3]])
    given = {"text": 70, "learned": True, "masked": True, "head_dim": 64, "dtype": torch.float16}
    return make_case(Grid(5, 17, 11), config, bands=bands, **given)


def _branch() -> AttendCase:
    """Full tiles, and a LOW branch whose low tokens fill whole blocks; head_dim 96 is padded."""
    config = FreqFormerConfig(mid_tiles=3, window=(1, 1, 2), summary_tokens=9, compression=8)
    bands = torch.tensor([[1, 2, 0]])
    given = {"text": 37, "learned": True, "head_dim": 96, "dtype": torch.bfloat16}
    return make_case(Grid(8, 16, 16), config, bands=bands, branch=True, **given)


def _all_rows() -> AttendCase:
    """A LOW branch and text in parts, and video queries in every row: the last tasks have some."""
    config = FreqFormerConfig(mid_tiles=3, window=(1, 1, 2), summary_tokens=0, compression=32)
    given = {"text": 70, "head_dim": 128, "dtype": torch.bfloat16}
    bands = torch.tensor([[1, 2]])
    return make_case(Grid(8, 16, 16), config, bands=bands, branch=True, **given)


CHECKS = {
    "windows": Check(_windows),
    "ragged": Check(_ragged),
    "branch": Check(_branch, residual=True),
    "all rows": Check(_all_rows),
    "windows, gradients": Check(_windows, backward=True),
    "ragged, gradients": Check(_ragged, backward=True),
    "branch, gradients": Check(_branch, backward=True),
}


def moved(x: Any, device: str) -> Any:
    """The same on another device: tensors, records of them, and a plan's tables."""
    if isinstance(x, Tensor):
        return x.to(device)
    if isinstance(x, LaunchTables):
        return launch_tables(x.plan, torch.device(device))
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*(moved(part, device) for part in x))
    if isinstance(x, tuple):
        return tuple(moved(part, device) for part in x)
    if is_dataclass(x) and not isinstance(x, type):
        known = {field.name: moved(getattr(x, field.name), device) for field in fields(x)}
        return replace(x, **known)
    return x


def launches_on(device: str) -> Launches:
    """Those of Gluon, run on a device for callers on the CPU."""

    def on_device(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            named = {name: moved(x, device) for name, x in named.items()}
            with nan_filled_allocations():
                results = function(*moved(given, device), **named)
            wait()
            return moved(results, "cpu")

        return run

    return Launches(on_device(launch.attend), on_device(launch_backward.attend_backward))


def wait() -> None:
    """Return when the GPU has ended; RuntimeError where it doesn't."""
    if not torch.cuda.is_available():
        return
    end, began = torch.cuda.Event(), time.monotonic()
    end.record()
    while not end.query():
        if time.monotonic() - began > PATIENCE:
            raise RuntimeError(f"a launch hasn't ended after {PATIENCE} s")
        time.sleep(0.01)


@contextmanager
def few_programs() -> Iterator[None]:
    """Within it, few programs share the tasks, and a few tiles are a part of a text query's."""
    with (
        mock.patch.object(launch, "multiprocessors", return_value=PROGRAMS),
        mock.patch.object(launch_backward, "multiprocessors", return_value=PROGRAMS),
        mock.patch.object(buffers, "TEXT_PART_TILES", 4),
    ):
        yield


def run(check: Check, launches: Launches) -> None:
    """Raise AssertionError unless the launches are as near float64 as their peer."""
    case = check.case()
    if check.backward:
        with mock.patch.object(attend_grads, "launches_of", return_value=launches):
            attend_grads.check_grads(case, impl="gluon")
        return
    got = launches.attend(**case.arguments, backward=check.residual)
    check_case(case, got, {})
    if check.residual:
        check_residual(case, got)


def check_residual(case: AttendCase, got: AttentionOutputs) -> None:
    """Outputs of text and low queries with what rounding took from them are nearer."""
    exact = expected(case)
    batch, tokens, heads, width = got.out.shape
    text = case.plan.num_text_tokens
    lost = got.rounding_residual
    assert lost is not None
    places = (
        (got.low_out, exact[1], lost[:, tokens:]),
        (
            got.out[:, tokens - text :].transpose(1, 2).reshape(batch * heads, text, width),
            exact[0][:, tokens - text :].transpose(1, 2).reshape(batch * heads, text, width),
            lost[:, tokens - text : tokens],
        ),
    )
    for rounded, wanted, residual in places:
        off = (rounded.double() - wanted).abs().mean()
        left = (rounded.double() + residual.double() - wanted).abs().mean()
        assert left < 0.95 * off, f"{left} with what rounding took, {off} without"


def compile_only(names: list[str]) -> None:
    """Raise RuntimeError unless the launches of the checks compile for Hopper."""
    from tests.support.compile_only import HOPPER_KERNELS, compile_launches

    launches = launches_on("cpu")
    for name in names:
        check = CHECKS[name]

        def call(check: Check = check) -> None:
            # Nothing is computed, so that what comes out is never right.
            try:
                run(check, launches)
            except AssertionError:
                return

        kernels = compile_launches("sm_90", call, HOPPER_KERNELS)
        if not kernels:
            raise RuntimeError("no kernel of Gluon was launched")
        for kernel in kernels:
            if "error" in kernel:
                raise RuntimeError(f"{kernel['name']} doesn't compile: {kernel['error']}")


def _told(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def _is_of_the_gpu(error: Exception) -> bool:
    """Whether a launch that compiled ended badly."""
    return "CUDA" in str(error) or "hasn't ended" in str(error)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--compile", action="store_true", help="compile only, without a GPU")
    parser.add_argument("names", nargs="+", choices=list(CHECKS))
    given = parser.parse_args()
    name = given.names[0]
    with few_programs():
        try:
            if given.compile:
                compile_only(given.names)
            else:
                launches = launches_on("cuda")
                for name in given.names:
                    run(CHECKS[name], launches)
        except (AssertionError, RuntimeError, CompilationError) as error:
            failed = isinstance(error, AssertionError) or _is_of_the_gpu(error)
            how = "".join(traceback.format_exception_only(error))[-300:]
            _told(ended="failed" if failed else "broken", check=name, how=how)
            return 1 if failed else 2
    _told(ended="passed")
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # Without cleaning up: a kernel that never ends would keep the process waiting for it.
    os._exit(status)
