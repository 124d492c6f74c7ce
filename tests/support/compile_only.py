"""Launches compiled for a GPU that isn't here, by Triton's own compiler: nothing runs.

    python -m tests.support.compile_only 90 NAME

compiles the launches of one of `CASES`, or of `sizes`, for a compute capability and prints facts
about each kernel as JSON; `python -m tests.support.compile_only serve` answers tests, see
`tests.support.compilers`. TRITON_INTERPRET must not be set, so that it is a process of its own.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from tests.support.attend_cases import AttendCase, make_case
from tests.support.compilers import serve
from triton.backends.compiler import GPUTarget
from triton.compiler.errors import CompilationError
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Grid
from freqformer.ops import architectures
from freqformer.ops.parameters import BranchGates

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
RAGGED = Grid(5, 9, 13)
FULL = Grid(4, 8, 16)


class Driver:
    """Stands for the driver of a GPU of some architecture, named as `sm_90` or `gfx942`."""

    def __init__(self, name: str) -> None:
        self.name = name
        number = name.removeprefix("sm_")
        self.target = (
            GPUTarget("cuda", int(number), 32) if number != name else GPUTarget("hip", name, 64)
        )

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> str:
        return self.name  # Triton keeps what it compiled by device

    def get_current_stream(self, device: str) -> int:
        return 0

    def set_current_device(self, device: str) -> None:
        pass

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def compile_launches(
    name: str, launch: Callable[[], object], only: Sequence[str] = (), *, disassembled: bool = True
) -> list[dict[str, Any]]:
    """What `launch()` launches, compiled for an architecture, and facts about it.

    Args:
        name: of the architecture.
        launch: called on CPU tensors; launches compute nothing, and leave what they write as it is.
        only: names of the kernels to compile; all where empty.
        disassembled: whether to look at machine code for NVIDIA's GPUs, half a second a kernel.

    Returns: for every launch its kernel's `name`, and `error`, or `registers` of a thread, its
        `spilled` bytes, `shared` bytes, how often each of its `instructions` stands in the
        machine code if `disassembled`, and a `hash` that is another for what is compiled anew.
    """
    driver.set_active(Driver(name))
    found: list[dict[str, Any]] = []
    run = JITFunction.run

    def only_compile(self: Any, *given: Any, grid: Any, warmup: bool, **named: Any) -> None:
        if only and self.__name__ not in only:
            return
        try:
            kernel = run(self, *given, grid=grid, warmup=True, **named)
            if "amdgcn" in kernel.asm:
                known = amd_facts(kernel)
            else:
                known = facts(kernel, disassembled=disassembled)
            known["hash"] = kernel.hash
        except (RuntimeError, CompilationError, subprocess.CalledProcessError) as error:
            known = {"error": f"{type(error).__name__}: {str(error)[-300:]}"}
        found.append({"name": self.__name__, **known})

    with (
        mock.patch.object(JITFunction, "run", only_compile),
        mock.patch.object(architectures, "architecture_name", return_value=name),
    ):
        launch()
    return found


def amd_facts(kernel: Any) -> dict[str, Any]:
    """See `compile_launches`; from the metadata and the text of an AMD GPU's assembly."""
    text = kernel.asm["amdgcn"]
    (stack,) = re.findall(r"^\s+\.private_segment_fixed_size:\s+(\d+)", text, re.MULTILINE)
    (registers,) = re.findall(r"^\s+\.vgpr_count:\s+(\d+)", text, re.MULTILINE)
    counts = Counter(re.findall(r"^\t([a-z]\w+)", text, re.MULTILINE))
    return {
        "registers": int(registers),
        "spilled": int(stack),
        "shared": kernel.metadata.shared,
        "instructions": counts,
    }


def facts(kernel: Any, *, disassembled: bool) -> dict[str, Any]:
    """See `compile_launches`; from the machine code for an NVIDIA GPU."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _told_of(file.name, "-res-usage")
        sass = _told_of(file.name, "-sass") if disassembled else ""
    (stack,) = re.findall(r"STACK:(\d+)", usage)
    (registers,) = re.findall(r"REG:(\d+)", usage)
    known = {
        "registers": int(registers),
        "spilled": int(stack),
        "shared": kernel.metadata.shared,
    }
    if not disassembled:
        return known
    instruction = r"^\s+/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+\s+)?(\w+)"
    return known | {
        "instructions": Counter(re.findall(instruction, sass, re.MULTILINE)),
        "overwritten": sum(_overwritten(part) for part in sass.split("USETMAXREG")),
    }


def _told_of(cubin: str, option: str) -> str:
    command = [TOOLS / "cuobjdump", option, cubin]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _overwritten(sass: str) -> int:
    """Registers that hold a left factor of products with keys or values as they lie in memory, and
    of products with their transpose: the first are factors of every step, and the second are
    written in each.

    sass: of one warp group.
    """
    product = r"HGMMA\S+ R\d+, R(\d+), gdesc\[\w+\](\.tnspB)?"
    kept: set[int] = set()
    written: set[int] = set()
    for register, transposed in re.findall(product, sass):
        factor = range(int(register), int(register) + 4)
        (written if transposed else kept).update(factor)
    return len(kept & written)


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
    if name == "default, backward":
        return make_case(FULL, window, bands=high, branch=True, **half), True
    if name == "default, head_dim 96, backward":
        padded = half | {"head_dim": 96}
        return make_case(FULL, window, bands=high, branch=True, **padded), True
    if name == "default, ragged, backward":
        return make_case(RAGGED, window, bands=high, branch=True, **half), True
    if name == "windows, narrow, backward":
        narrow = {"head_dim": 64, "dtype": torch.float16}
        return make_case(RAGGED, window, bands=high, **narrow), True
    if name == "everything":
        config = FreqFormerConfig(mid_tiles=2, summary_tokens=3, band_features="high_pass_values")
        extra = {"text": 5, "learned": True, "masked": True, "head_dim": 64}
        return make_case(RAGGED, config, bands=every, dtype=torch.float16, **extra), True
    raise ValueError(f"name is {name!r}; see `CASES`, or 'sizes'")


def _sizes() -> list[AttendCase]:
    """Videos of three sizes with the same tile, in numbers that 16 and 2 divide or don't."""
    config = FreqFormerConfig(tile=(4, 4, 8), window=(1, 1, 1), mid_tiles=2, summary_tokens=3)
    bands = torch.tensor([[int(band) for band in Band]])
    given: dict[str, Any] = {"branch": True, "learned": True, "masked": True}
    sizes = ((RAGGED, 5), (Grid(6, 16, 20), 16), (Grid(9, 10, 28), 8))
    return [
        make_case(grid, config, bands=bands, dtype=torch.bfloat16, text=text, **given)
        for grid, text in sizes
    ]


CASES = (
    "windows",
    "default",
    "default, backward",
    "default, head_dim 96, backward",
    "default, ragged, backward",
    "windows, narrow, backward",
    "everything",
)
HOPPER_KERNELS = ("attention_kernel", "query_grads_kernel", "video_grads_kernel")
"""Those of Gluon. Launches around them are Triton's, whose tests are others."""


def found(
    capability: str, name: str, kernels: Sequence[str] = HOPPER_KERNELS
) -> list[dict[str, Any]]:
    """Facts about kernels of Gluon."""
    from freqformer.ops.block_sparse.gluon import launch, launch_backward

    cases = [(case, True) for case in _sizes()] if name == "sizes" else [_case(name)]

    def launches(case: AttendCase, backward: bool) -> None:
        outputs = launch.attend(**case.arguments, backward=backward)
        if backward:
            arguments = case.arguments
            if case.rows.low_branch:
                batch, tokens, heads, _ = outputs.out.shape
                arguments |= {
                    "low_branch": BranchGates(by_sample=outputs.out.new_zeros(batch, 2, heads)),
                    "gate_grads": torch.zeros(batch, tokens, 2, heads),
                }
            launch_backward.attend_backward((outputs.out, outputs.low_out), outputs, **arguments)

    with (
        mock.patch.object(launch, "multiprocessors", return_value=132),
        mock.patch.object(launch_backward, "multiprocessors", return_value=132),
    ):
        return [
            kernel
            for case, backward in cases
            for kernel in compile_launches(
                f"sm_{capability}",
                partial(launches, case, backward),
                kernels,
                disassembled=name != "sizes",
            )
        ]


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        serve(found)
    else:
        print(json.dumps(found(*sys.argv[1:])))
