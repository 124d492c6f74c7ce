"""What a call does, as data that a compiled graph is given rather than holds.

A graph that holds a call's plan and bands as constants serves that call alone. One that is handed a
`CallRecord` as a tensor serves every call of the same shapes: the operation reads it on the host
when the graph runs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from freqformer.config import PLAN_FIELDS, FreqFormerConfig
from freqformer.grid import Grid

RECORD_BYTES = 1024
"""Of every record, so that no graph depends on how long one is."""
CALL_FIELDS = (*PLAN_FIELDS, "deterministic")
"""Fields of a config that a call depends on."""


@dataclass(frozen=True)
class CallRecord:
    """What is static about a call, as arguments of `frequency_attention`."""

    grid: Grid
    config: FreqFormerConfig
    num_text_tokens: int
    present: tuple[int, ...]
    """As `KnownBands.present`."""


@dataclass(frozen=True, eq=False)
class RecordedBands:
    """What a graph is given of a call."""

    bands: Tensor
    """Of every head, whole numbers (B, H), each one that the record has `present`."""
    record: Tensor
    """Of `packed`."""
    costs: Tensor | None = None
    """What a head costs as LOW, MID, HIGH and DENSE, float64 (4,) where the bands are; None where
    ranks share no heads."""


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # what it caches must also serve training
def packed(record: CallRecord) -> Tensor:
    """The record as bytes on the host, uint8 (RECORD_BYTES,): the same tensor for equal records."""
    config = {name: getattr(record.config, name) for name in CALL_FIELDS}
    values = (record.grid.shape, config, record.num_text_tokens, record.present)
    text = json.dumps(values).encode()
    assert len(text) <= RECORD_BYTES
    return torch.frombuffer(bytearray(text.ljust(RECORD_BYTES)), dtype=torch.uint8)


def unpacked(data: Tensor) -> CallRecord:
    """The record of `packed`, without a wait for any device."""
    return _read(data.numpy().tobytes())


@lru_cache(maxsize=256)
def _read(text: bytes) -> CallRecord:
    shape, config, num_text_tokens, present = json.loads(text)
    return CallRecord(
        Grid(*shape), FreqFormerConfig.from_dict(config), num_text_tokens, tuple(present)
    )
