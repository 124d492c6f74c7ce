"""Triton's interpreter, faster for kernels that call many small functions."""

from __future__ import annotations

from typing import Any


def patch_language_once() -> None:
    """Let a device function patch the language only where its kernel's launch has not done so.

    The interpreter looks through the whole language at every call of a device function, 1 to 3 ms,
    to patch what is patched already: most of the time of a small case. Changes nothing where
    kernels are compiled.
    """
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
