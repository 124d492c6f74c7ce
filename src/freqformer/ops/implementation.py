"""Which code a call runs."""

from __future__ import annotations

import logging
import warnings
from functools import lru_cache
from typing import Literal

from freqformer.tracing import constant_result

logger = logging.getLogger(__name__)

ImplChoice = Literal["auto", "eager", "reference", "triton"]


def resolve(
    impl: ImplChoice, device: str, obstacle: str | None
) -> Literal["eager", "reference", "triton"]:
    """The code to run: `auto` is triton on a GPU where it can run, else eager. The log says which;
    a warning says, once for every reason, why it is eager on a GPU.

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
    _tell_once(device, chosen, obstacle or "")
    return chosen


@constant_result
@lru_cache(maxsize=64)
def _tell_once(device: str, chosen: str, obstacle: str) -> None:
    logger.info("frequency_attention on %s runs impl=%r", device, chosen)
    if device != "cpu" and obstacle:
        warnings.warn(
            f"frequency_attention on {device} runs impl={chosen!r}, many times slower, since "
            "impl='triton' can't run: "
            f"{obstacle}",
            stacklevel=2,
        )
