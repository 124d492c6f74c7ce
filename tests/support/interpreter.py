"""Triton's interpreter, faster for kernels that call many small functions.

Nothing here changes what a kernel computes: tests/support/test_interpreter.py compares. Where a
release of Triton has other internals, it stays as slow as it is.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

KNOWN = ("3.7.",)
"""Releases of Triton whose internals `_share_types` knows."""


def patch_language_once() -> None:
    """Let a device function patch the language only where its kernel's launch has not done so, and
    leave out what has no effect.

    The interpreter looks through the whole language at every call of a device function, 1 to 3 ms,
    to patch what is patched already: most of the time of a small case. It also does all arithmetic
    of integers a second time in int64, for an assertion that it makes with TRITON_DEBUG alone.
    Changes nothing where kernels are compiled.
    """
    import triton
    from triton import knobs
    from triton import language as tl
    from triton.runtime import interpreter

    if not knobs.runtime.interpret:
        return

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        used = [value for value in self.fn.__globals__.values() if value is tl or value is tl.core]
        if any(tl.core.is_builtin(language.load) for language in used):
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **kwargs)

    interpreter.InterpretedFunction.__call__ = call
    builder = interpreter.interpreter_builder
    if not builder.options.debug:
        builder.options = replace(builder.options, sanitize_overflow=False)
    if triton.__version__.startswith(KNOWN):
        _share_types()


def _share_types() -> None:
    """Let tensors of a shape share what describes it, and look types up by name.

    Every operation makes a type, and with it tuples, constants, their types and a name from them:
    most of what is left of its time.
    """
    from triton.language import core

    if "of_tests" in vars(core):
        return
    vars(core)["of_tests"] = True
    _share_shapes()
    _compare_by_identity()


def _share_shapes() -> None:
    from triton.language import core

    make_type = core.block_type.__init__
    shapes: dict[tuple[int, ...], tuple[Any, int, str]] = {}
    sizes: dict[tuple[int, ...], tuple[Any, Any]] = {}

    def block_type(self: Any, element_ty: Any, shape: Any) -> None:
        lengths = tuple([x.value if isinstance(x, core.constexpr) else x for x in shape])
        known = shapes.get(lengths)
        if known is None:
            make_type(self, element_ty, shape)
            shapes[lengths] = self.shape, self.numel, str(self.shape)
            return
        self.element_ty = element_ty
        self.shape, self.numel, told = known
        self.name = f"<{told}, {element_ty}>"

    def tensor(self: Any, handle: Any, type: Any) -> None:
        lengths = tuple(type.shape.values) if type.is_block() else ()
        known = sizes.get(lengths)
        if known is None:
            made = core.tuple([core.constexpr(x) for x in lengths])
            known = sizes[lengths] = made, core.constexpr(math.prod(lengths))
        self.shape, self.numel = known
        self.handle, self.type, self.dtype = handle, type, type.scalar

    core.block_type.__init__ = block_type
    core.tensor.__init__ = tensor


def _compare_by_identity() -> None:
    """What is shared is found equal, and needs no broadcast; constants are most often plain."""
    from triton.language import core
    from triton.language.semantic import TritonSemantic
    from triton.runtime import interpreter

    unwrap, equal, np_dtype = (
        core._unwrap_if_constexpr,
        core.dtype.__eq__,
        interpreter._get_np_dtype,
    )
    broadcast = TritonSemantic.broadcast_impl_value
    convert = TritonSemantic.binary_op_type_checking_impl
    plain = [core.int32, core.int64, core.float32, core.float64]
    dtypes: dict[str, Any] = {}
    nested = (list, tuple, core.tuple)

    def unwrap_if_constexpr(x: Any) -> Any:
        if isinstance(x, core.constexpr):
            return x.value
        return unwrap(x) if isinstance(x, nested) else x

    def is_equal(self: Any, other: Any) -> bool:
        return self is other or equal(self, other)

    def numpy_dtype(type: Any) -> Any:
        scalar = type.scalar
        if scalar.name not in dtypes:
            dtypes[scalar.name] = np_dtype(scalar)
        return dtypes[scalar.name]

    def broadcast_values(self: Any, lhs: Any, rhs: Any) -> Any:
        shape = getattr(lhs.type, "shape", None)
        if shape is getattr(rhs.type, "shape", None):
            return lhs, rhs
        return broadcast(self, lhs, rhs)

    def converted(self: Any, lhs: Any, rhs: Any, *given: Any, **named: Any) -> Any:
        if type(lhs) is type(rhs) is core.tensor and lhs.dtype is rhs.dtype:
            alike = getattr(lhs.type, "shape", None) is getattr(rhs.type, "shape", None)
            if alike and any(lhs.dtype is one for one in plain):
                return lhs, rhs
        return convert(self, lhs, rhs, *given, **named)

    core._unwrap_if_constexpr = unwrap_if_constexpr
    core.dtype.__eq__ = is_equal
    interpreter._get_np_dtype = numpy_dtype
    TritonSemantic.broadcast_impl_value = broadcast_values
    TritonSemantic.binary_op_type_checking_impl = converted
