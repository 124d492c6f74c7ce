"""The figures of docs/distributed.md are those of the committed result files."""

from __future__ import annotations

from importlib import import_module
from statistics import median
from typing import Any

import pytest
from tests.support.pages import ROOT, check_says

from freqformer.simulate.model.efficiency import load_efficiency
from freqformer.simulate.model.hardware import load_hardware

PAGE = "docs/distributed.md"


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return import_module("distributed_table")


@pytest.fixture
def rows(table: Any) -> Any:
    """The committed rows, by name."""
    return table.read(ROOT / "benchmarks" / "results" / "distributed")


@pytest.fixture
def joined(table: Any, rows: Any) -> Any:
    return {found["row"]: found for found in table.joined(rows)}


def test_the_table(table: Any, rows: Any) -> None:
    assert table.page_table(rows) in (ROOT / PAGE).read_text(encoding="utf-8")


def test_where_the_time_goes(joined: Any) -> None:
    found = joined["default-262144-forward"]
    half = found["one_ms"] / 2
    shown = found["nccl_ms"] - found["hidden_ms"]
    check_says(
        PAGE,
        f"{half:.1f} ms are half of one GPU's, {shown:.1f} ms NCCL that nothing hides, and "
        f"{found['ms'] - half - shown:.1f} ms other things",
    )


def test_links_overlap_and_heads_by_cost(rows: Any, joined: Any) -> None:
    links = {one["bytes"] >> 20: one for one in rows["links"]["messages"]}
    times = {name: {key: f"{value:.2f}" for key, value in found.items() if "times" in key}
             for name, found in joined.items()}  # fmt: skip
    check_says(
        PAGE,
        f"{1e3 * max(one['ms'] for size, one in links.items() if size <= 8):.0f} µs up to 8 MiB a "
        f"rank, {links[64]['gb_per_s']:.0f} GB/s",
        f"at 64 MiB, {links[1024]['gb_per_s']:.0f} at 1 GiB and {links[2048]['gb_per_s']:.0f} at 2",
        f"pass {times['default-262144-forward']['times_waited']} times as fast at 262,144 tokens "
        f"and {times['default-1048576-forward']['times_waited']} at 1,048,576, with backward "
        f"{times['default-262144-backward']['times_waited']} and "
        f"{times['default-1048576-backward']['times_waited']}.",
        f"`paper()` {times['paper-262144-forward']['times_in-order']} times as fast as heads in "
        f"order, {times['paper-262144-backward']['times_in-order']} with backward, and "
        f"{times['paper-1048576-backward']['times_in-order']} with backward at 1,048,576",
    )


def test_the_simulators_errors() -> None:
    rows: list[dict[str, Any]] = load_efficiency(load_hardware("h200")).fit["rows"]
    errors = {
        (row["name"], row["tokens"]): abs(row["predicted_s"] / row["measured_s"] - 1)
        for row in rows
        if row["held_out"] and "2 GPUs" in row["name"]
    }
    layers = [error for (name, _), error in errors.items() if name.startswith("layer")]
    messages = sorted(error for (name, _), error in errors.items() if name.startswith("all-to-all"))
    assert len(layers) == 9
    assert errors["all-to-all of 32 MiB, 2 GPUs", 1] == messages[-1]
    assert messages[-2] < 0.07
    check_says(
        PAGE,
        f"errs by {median(layers):.1%} in the median and {max(layers):.1%} at most in the other "
        "nine layers",
        f"one: {messages[-1]:.0%} at 32 MiB",
    )
