"""Which code a call runs."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Literal

from freqformer.tracing import constant_result

logger = logging.getLogger(__name__)

ImplChoice = Literal["auto", "eager", "reference", "triton"]


def resolve(impl: ImplChoice, device: str, obstacle: str | None) -> Literal["eager", "reference", "triton"]:
    """The code to run: `auto` is triton on a GPU where it can run, else eager, and the log says which and why.

    Args:
        impl: what the caller asks for.
        device: type of the tensors' device.
        obstacle: why triton can't run, None where it can.

    Raises:
        ValueError: for `triton` where it can't run.
    """
    if impl == "triton" and obstacle is not None:
        raise ValueError(f"impl is 'triton', which can't run: {obstacle}")
    if impl != "auto":
        return impl
    chosen = "eager" if device == "cpu" or obstacle is not None else "triton"
    _log_once(device, chosen, "" if device == "cpu" or obstacle is None else f", since impl='triton' can't run: {obstacle}")
    return chosen


@constant_result
@lru_cache(maxsize=64)
def _log_once(device: str, chosen: str, reason: str) -> None:
    logger.info("frequency_attention on %s runs impl=%r%s", device, chosen, reason)
