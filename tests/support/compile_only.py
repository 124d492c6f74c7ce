"""Launches compiled for a GPU that isn't here, by Triton's own compiler: nothing runs.

    python -m tests.support.compile_only 90 NAME

compiles the launches of one of `CASES` for a compute capability and prints facts about each kernel
as JSON. TRITON_INTERPRET must not be set, so that tests run it as a process of its own.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from tests.support.attend_cases import AttendCase, make_case
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Grid

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
RAGGED = Grid(5, 9, 13)
FULL = Grid(4, 8, 16)


class Driver:
    """Stands for the driver of a GPU of some capability."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def compile_launches(capability: int, launch: Any) -> list[dict[str, Any]]:
    """What `launch()` launches, compiled, and facts about it: name, `registers` of a thread,
    `spilled` bytes, `shared` bytes and how often each SASS instruction stands in it."""
    driver.set_active(Driver(capability))
    compiled = []
    run = JITFunction.run

    def only_compile(self: Any, *given: Any, grid: Any, warmup: bool, **named: Any) -> Any:
        kernel = run(self, *given, grid=grid, warmup=True, **named)
        compiled.append((self.__name__, kernel))
        return kernel

    with mock.patch.object(JITFunction, "run", only_compile):
        launch()
    return [{"name": name, **facts(kernel)} for name, kernel in compiled]


def facts(kernel: Any) -> dict[str, Any]:
    """See `compile_launches`."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage, sass = (
            subprocess.run(
                [TOOLS / "cuobjdump", option, file.name], capture_output=True, text=True, check=True
            ).stdout
            for option in ("-res-usage", "-sass")
        )
    counts: dict[str, int] = {}
    for line in re.findall(r"^\s+/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+\s+)?(\w+)", sass, re.MULTILINE):
        counts[line] = counts.get(line, 0) + 1
    (stack,) = re.findall(r"STACK:(\d+)", usage)
    (registers,) = re.findall(r"REG:(\d+)", usage)
    return {
        "registers": int(registers),
        "spilled": int(stack),
        "shared": kernel.metadata.shared,
        "instructions": counts,
    }


def _case(name: str) -> tuple[AttendCase, bool]:
    """A case by name, and whether gradients will be asked for."""
    half = {"head_dim": 128, "dtype": torch.bfloat16}
    high = torch.tensor([[int(Band.HIGH)] * 2])
    every = torch.tensor([[int(band) for band in Band]])
    window = FreqFormerConfig(window=(1, 1, 1))
    if name == "windows":
        return make_case(FULL, window, bands=high, **half), False
    if name == "default":
        return make_case(FULL, window, bands=high, branch=True, **half), False
    if name == "default, ragged, backward":
        return make_case(RAGGED, window, bands=high, branch=True, **half), True
    if name == "everything":
        config = FreqFormerConfig(mid_tiles=2, summary_tokens=3, band_features="high_pass_values")
        extra = {"text": 5, "learned": True, "masked": True, "head_dim": 64}
        return make_case(RAGGED, config, bands=every, dtype=torch.float16, **extra), False
    raise ValueError(f"name is {name!r}; see `CASES`")


CASES = ("windows", "default", "default, ragged, backward", "everything")


def main(capability: str, name: str) -> None:
    """Print the facts."""
    from freqformer.ops.block_sparse.gluon import launch

    case, backward = _case(name)
    with mock.patch.object(launch, "multiprocessors", return_value=132):
        found = compile_launches(
            int(capability), lambda: launch.attend(**case.arguments, backward=backward)
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
