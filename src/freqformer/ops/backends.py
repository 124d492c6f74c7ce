"""Which code a call runs: the backends, what each of them can run, and the choice among them.

This is the only place that knows their names. A new backend of the attention launch is a folder of
`ops/block_sparse` and a row of `BACKENDS`; see CONTRIBUTING.md.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from freqformer.ops.architectures import architecture_name
from freqformer.ops.parameters import AttentionParameters
from freqformer.tracing import constant_result

logger = logging.getLogger(__name__)

ImplChoice = Literal["auto", "eager", "gluon", "reference", "triton"]
"""What `impl` may be: the name of a backend, or `auto`."""
IMPLS: tuple[ImplChoice, ...] = get_args(ImplChoice)
PlainImpl = Literal["eager", "reference"]
MOST_HEAD_DIM = 256
"""That the Triton kernels are made for; buffers are padded to the next power of two."""
GLUON_HEAD_DIMS = range(33, 129)
"""Padded to 64 or 128."""
GLUON_DTYPES = (torch.bfloat16, torch.float16)
HOPPER = "sm_90"
"""The architecture that the Gluon kernels are made for."""

Tensors = tuple[Tensor, Tensor, Tensor]
"""Query, key and value."""


class Launches(NamedTuple):
    """What a backend of the attention launch computes; the prologue and the merge around it are
    the same for all."""

    attend: Callable[..., Any]
    """As `ops.block_sparse.triton.launch.attend`."""
    attend_backward: Callable[..., Any]
    """As `ops.block_sparse.triton.launch_backward.attend_backward`, and it takes `deterministic`
    too, see `FreqFormerConfig`."""


UnsupportedReason = Callable[[Tensors, AttentionParameters | None], str | None]


@dataclass(frozen=True)
class Backend:
    """One way to compute a call."""

    name: str
    """What `impl` calls it."""
    plain: PlainImpl | None
    """The plain PyTorch code that it is; None where it launches the fused pipeline."""
    automatic: Literal["gpu", "anywhere", "never"]
    """Where `auto` takes it, unless an earlier row can run."""
    unsupported_reason: UnsupportedReason
    """Why it can't run these tensors, and what to do instead; None where it can."""
    launches: Callable[[], Launches] | None = None
    """Imports and returns what it launches, in the fused pipeline; None for plain PyTorch."""

    @property
    def fused(self) -> bool:
        """Whether the fused pipeline is launched, and with it all kernels around it."""
        return self.plain is None


def _triton_reason(tensors: Tensors, parameters: AttentionParameters | None) -> str | None:
    query = tensors[0]
    if not _triton_installed():
        return "Triton is not installed: install it, or choose impl='eager'"
    if query.device.type == "cpu" and not _triton_interprets():
        return (
            "the tensors are on the CPU: move them to a GPU, choose impl='eager', or set "
            "TRITON_INTERPRET=1 to debug"
        )
    if query.dtype == torch.float64:
        return "the tensors are float64: convert them to float32, or choose impl='eager'"
    if query.dtype == torch.float32 and torch.version.hip is not None:
        return (
            "the tensors are float32, whose products Triton doesn't compile for AMD GPUs: convert "
            "them to bfloat16, or choose impl='eager'"
        )
    if query.shape[-1] > MOST_HEAD_DIM:
        return (
            f"head_dim is {query.shape[-1]}, and 1 to {MOST_HEAD_DIM} are allowed: make the heads "
            "narrower and more, or choose impl='eager'"
        )
    rotation = None if parameters is None else parameters.rotation
    asked = rotation is not None and (rotation.cos.requires_grad or rotation.sin.requires_grad)
    if asked and torch.is_grad_enabled():
        return (
            "it gives the rotary tables no gradient, and one is asked for: detach them, or "
            "choose impl='eager'"
        )
    return None


def _gluon_reason(tensors: Tensors, parameters: AttentionParameters | None) -> str | None:
    reason = _triton_reason(tensors, parameters)  # of the launches around it
    query = tensors[0]
    if reason is not None:
        return reason
    if _triton_interprets():
        return "Gluon has no interpreter: unset TRITON_INTERPRET, or choose impl='triton'"
    if not _is_hopper(query.device):
        return "the GPU is none of architecture sm_90, Hopper: choose impl='triton'"
    if query.dtype not in GLUON_DTYPES:
        return (
            f"the tensors are {query.dtype}, and bfloat16 and float16 are allowed: convert them, "
            "or choose impl='triton'"
        )
    if query.shape[-1] not in GLUON_HEAD_DIMS:
        return (
            f"head_dim is {query.shape[-1]}, and {GLUON_HEAD_DIMS[0]} to {GLUON_HEAD_DIMS[-1]} are "
            "allowed: choose impl='triton'"
        )
    return None


def _no_reason(tensors: Tensors, parameters: AttentionParameters | None) -> str | None:
    return None


def _triton_launches() -> Launches:
    # Imported here, since Triton decides at import whether it interprets, and a CPU may have no
    # Triton at all.
    from freqformer.ops.block_sparse.triton.launch import attend
    from freqformer.ops.block_sparse.triton.launch_backward import attend_backward

    def backward(*given: Any, deterministic: bool, **named: Any) -> Any:
        return attend_backward(*given, **named)  # the same bits at every run, either way

    return Launches(attend, backward)


def _gluon_launches() -> Launches:
    from freqformer.ops.block_sparse.gluon.launch import attend
    from freqformer.ops.block_sparse.gluon.launch_backward import attend_backward

    return Launches(attend, attend_backward)


BACKENDS = (
    Backend("gluon", None, "gpu", _gluon_reason, _gluon_launches),
    Backend("triton", None, "gpu", _triton_reason, _triton_launches),
    Backend("eager", "eager", "anywhere", _no_reason),
    Backend("reference", "reference", "never", _no_reason),
)
"""All backends; `auto` takes the first that it may take and that can run."""


def launches_of(name: str) -> Launches:
    """What the fused backend of this name launches."""
    launches = next(backend.launches for backend in BACKENDS if backend.name == name)
    assert launches is not None  # a call of plain PyTorch doesn't come here
    return launches()


def resolve(
    impl: ImplChoice, tensors: Tensors, parameters: AttentionParameters | None = None
) -> Backend:
    """The backend that computes a call. For `auto` the log says which it is; a warning says, once
    for every reason, why it is plain PyTorch on a GPU.

    Args:
        impl: what the caller asks for, one of `IMPLS`.
        tensors: query, key and value of the call, of any shape that ends in head_dim.
        parameters: what the call learns, if anything.

    Raises:
        ValueError: for a backend that can't run the call.
    """
    if impl == "auto":
        return _automatic(tensors, parameters)
    backend = next(backend for backend in BACKENDS if backend.name == impl)
    reason = backend.unsupported_reason(tensors, parameters)
    if reason is not None:
        raise ValueError(f"impl is {impl!r}, which can't run: {reason}")
    return backend


def uses_triton(tensors: Tensors, impl: ImplChoice) -> bool:
    """Whether what surrounds a call, such as its router, launches Triton kernels for these tensors;
    ValueError where `impl` can't run them."""
    return resolve(impl, tensors).fused


def _automatic(tensors: Tensors, parameters: AttentionParameters | None) -> Backend:
    device = tensors[0].device.type
    places = ("anywhere",) if device == "cpu" else ("anywhere", "gpu")
    refused = []
    for backend in BACKENDS:
        if backend.automatic in places:
            reason = backend.unsupported_reason(tensors, parameters)
            if reason is None:
                _tell_once(device, backend.name, "" if backend.fused else "; ".join(refused))
                return backend
            refused.append(f"impl={backend.name!r} can't run: {reason}")
    raise AssertionError("a backend that runs anywhere refused a call")


@constant_result
@lru_cache(maxsize=64)
def _tell_once(device: str, chosen: str, refused: str) -> None:
    logger.info("frequency_attention on %s runs impl=%r", device, chosen)
    if refused:
        warnings.warn(
            f"frequency_attention on {device} runs impl={chosen!r}, many times slower, since "
            f"{refused}",
            stacklevel=2,
        )


@constant_result
def _triton_installed() -> bool:
    return find_spec("triton") is not None


@constant_result
def _triton_interprets() -> bool:
    from triton import knobs

    return knobs.runtime.interpret


@constant_result
def _is_hopper(device: torch.device) -> bool:
    return architecture_name(device) == HOPPER
