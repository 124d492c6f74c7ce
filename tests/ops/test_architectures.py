"""The table of block sizes, and which row a GPU takes."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from freqformer.ops import architectures
from freqformer.ops.architectures import KIB, ROWS, architecture, architecture_name, row_of

SHARED = {
    "sm_80": 163,
    "sm_86": 99,
    "sm_89": 99,
    "sm_90": 227,
    "sm_100": 227,
    "sm_120": 99,
    "gfx942": 64,
}
"""KiB that one program can have, from the vendors' tables."""


def test_rows() -> None:
    assert {name: row.shared_memory // KIB for name, row in ROWS.items()} == SHARED
    for row in ROWS.values():
        assert row.descriptors == (row.name in ("sm_90", "sm_100", "sm_120"))
        pointers = row.by_pointers()
        assert not pointers.descriptors
        assert pointers.shared_memory <= row.shared_memory
        # Every head_dim that is padded or not finds steps, of blocks that products take.
        for head_dim in (16, 64, 72, 128, 256):
            for dtype in (torch.bfloat16, torch.float32):
                for step in row.steps(dtype, head_dim):
                    assert {step.query, step.key} <= {16, 32, 64, 128}
                    assert step.warps in (4, 8)
                    assert step.stages in (1, 2, 3)


def test_hopper_keeps_what_was_measured() -> None:
    """benchmarks/results has the figures of these."""
    row = ROWS["sm_90"]
    for head_dim in (64, 128):
        assert row.steps(torch.bfloat16, head_dim) == (
            (128, 64, 4, 2),
            (64, 64, 4, 2),
            (64, 64, 4, 2),
        )
    assert row.steps(torch.float16, 256) == ((128, 64, 8, 2), (64, 64, 8, 2), (32, 64, 8, 2))
    assert row.steps(torch.float32, 128) == ((32, 32, 8, 1), (32, 16, 8, 1), (16, 32, 8, 1))


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("sm_75", "older than sm_80"),
        ("sm_87", "sm_86"),
        ("sm_103", "sm_100"),
        ("sm_110", "sm_100"),
        ("sm_121", "sm_120"),
        ("sm_130", "sm_120"),
        ("gfx950", "gfx942"),
        ("gfx1201", "gfx942"),
        ("xpu", "sm_86"),
    ],
)
def test_an_unknown_one_takes_the_nearest_row_and_says_so(
    name: str, row: str, caplog: pytest.LogCaptureFixture
) -> None:
    row_of.cache_clear()
    with caplog.at_level(logging.INFO, logger="freqformer.ops.architectures"):
        assert row_of(name).name == row
        assert row_of(name).name == row
    assert [record.getMessage() for record in caplog.records] == [
        f"no block sizes were chosen for {name}: Triton's launches take those of {row}"
    ]


def test_before_matrix_units_every_step_is_that_of_float32() -> None:
    row = row_of("sm_75")
    assert row.steps(torch.float16, 128) == row.steps(torch.float32, 128)


def test_known_ones_and_the_interpreter_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    row_of.cache_clear()
    with caplog.at_level(logging.INFO, logger="freqformer.ops.architectures"):
        assert all(row_of(name) is row for name, row in ROWS.items())
        assert architecture(torch.device("cpu")) is ROWS["sm_90"]
    assert not caplog.records


@pytest.mark.parametrize(
    ("cuda", "name"), [("13.0", "sm_89"), (None, "gfx942")], ids=["nvidia", "amd"]
)
def test_a_device_is_asked_for_its_name(
    cuda: str | None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Properties:
        gcnArchName = "gfx942:sramecc+:xnack-"

    def properties(device: Any) -> type[Properties]:
        return Properties

    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    architectures.architecture_name.cache_clear()
    assert architecture_name(torch.device("cuda", 0)) == name
    assert architecture(torch.device("cuda", 0)).name == name
    architectures.architecture_name.cache_clear()
    assert architecture_name(torch.device("meta")) == "meta"
