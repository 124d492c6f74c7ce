"""What this machine has, and which code `auto` takes on it."""

from __future__ import annotations

import json
import platform
import re
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from freqformer import __version__
from freqformer.ops.architectures import architecture, architecture_name
from freqformer.ops.backends import BACKENDS, resolve

PACKAGES = ("torch", "triton", "diffusers")
"""Whose versions `make test-versions` goes through."""
MEASURED = "sm_90"
"""The architecture whose block sizes were measured."""


@dataclass(frozen=True)
class Gpu:
    """One GPU."""

    name: str
    architecture: str
    """As compilers call it, such as `sm_90`."""
    memory_gib: float
    free_gib: float


@dataclass(frozen=True)
class Choice:
    """What `impl="auto"` takes for a call in bfloat16 of head_dim 128, float32 on a CPU."""

    device: str
    impl: str
    refused: dict[str, str]
    """The backends before it in the order of preference, and why each can't run."""
    block_sizes: str
    """Where the kernels' block sizes come from; empty where none of our kernels run."""


@dataclass(frozen=True)
class Machine:
    """See `describe_machine`."""

    freqformer: str
    python: str
    system: str
    versions: dict[str, str | None]
    """Of torch, Triton and diffusers; None where it isn't installed."""
    cuda: str | None
    """That torch was built for; of an AMD GPU the version of HIP."""
    tested: str
    """Whether `make test-versions` has passed with these versions."""
    gpus: tuple[Gpu, ...]
    choice: Choice


def describe_machine(device: torch.device) -> Machine:
    """What is here, and what a call on `device` runs.

    Args:
        device: a CPU or a GPU.
    """
    versions = {name: _version(name) for name in PACKAGES}
    versions["torch"] = str(torch.__version__)  # with its build, which its metadata may leave out
    return Machine(
        freqformer=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        versions=versions,
        cuda=torch.version.cuda or torch.version.hip,
        tested=tested(versions),
        gpus=_gpus(),
        choice=_choice(device),
    )


def _gpus() -> tuple[Gpu, ...]:
    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        found.append(
            Gpu(
                name=torch.cuda.get_device_name(index),
                architecture=architecture_name(torch.device("cuda", index)),
                memory_gib=total / 2**30,
                free_gib=free / 2**30,
            )
        )
    return tuple(found)


def _choice(device: torch.device) -> Choice:
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    query, key, value = torch.empty(3, 1, 1, 1, 128, dtype=dtype, device=device)
    chosen = resolve("auto", (query, key, value))
    refused = {}
    for backend in BACKENDS[: BACKENDS.index(chosen)]:
        reason = backend.unsupported_reason((query, key, value), None)
        # On a CPU the interpreter could run it, which is for debugging.
        refused[backend.name] = reason or "it is taken on a GPU only"
    return Choice(
        device=str(device),
        impl=chosen.name,
        refused=refused,
        block_sizes=_block_sizes(device) if chosen.fused else "",
    )


def _block_sizes(device: torch.device) -> str:
    """Of Triton's launches, in words."""
    own = architecture_name(device)
    row = architecture(device).name
    if row == MEASURED:
        return f"those of {row}, measured"
    text = f"those of {row}, compiled and not yet measured"
    return text if row == own else f"{text}: {own} has none of its own"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def tested(versions: dict[str, str | None]) -> str:
    """Whether some case of requirements/tested.json has passed with these versions, in words.

    Args:
        versions: of `PACKAGES`; one that isn't installed is left out of the comparison, and so is
            what a build adds after `+`.
    """
    cases = _tested_cases()
    if not cases:
        return "unknown: the list of tested versions is not installed"
    for case in cases:
        known = case["versions"]
        if all(
            found is None or _release(known[name]) == _release(found)
            for name, found in versions.items()
        ):
            return "yes" if case["passed"] else "yes, and tests failed"
    with_torch = sorted({_release(case["versions"]["torch"]) for case in cases})
    return f"no: tests have passed with torch {', '.join(with_torch)}, and the Triton of each"


def _release(text: str) -> str:
    """A version without what a build adds: 2.13.0+cpu is 2.13.0."""
    return re.split(r"[+]", text)[0]


@cache
def _tested_cases() -> list[dict[str, Any]]:
    """The cases of tested.json: of the wheel, or of the repository that this package lies in."""
    repository = Path(__file__).resolve().parents[3]
    for place in (files("freqformer") / "tested.json", repository / "requirements/tested.json"):
        if place.is_file():
            return list(json.loads(place.read_text(encoding="utf-8"))["cases"].values())
    return []
