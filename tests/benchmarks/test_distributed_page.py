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


def test_where_the_time_goes(rows: Any, joined: Any) -> None:
    found = joined["default-262144-backward"]
    half = found["one_ms"] / 2
    shown = found["nccl_ms"] - found["hidden_ms"]
    more = _products(rows, "default-262144-backward-all")
    more -= _products(rows, "default-262144-backward-one") / 2
    check_says(
        PAGE,
        f"{half:.1f} ms are half of one GPU's, {shown:.1f} ms NCCL that nothing hides, and "
        f"{found['ms'] - half - shown:.1f} ms other things: matrix products take "
        f"{more:.1f} ms more",
        f"NCCL's {joined['default-262144-forward']['nccl_ms']:.1f} ms include",
        f"`paper()` shows {joined['paper-262144-forward']['nccl_ms']:.1f}",
    )


def test_what_was_asked(joined: Any) -> None:
    times = {name: found.get("times_one") for name, found in joined.items()}
    forward = [times[f"default-{tokens}-forward"] for tokens in (262144, 524288, 1048576)]
    assert min(forward) >= 1.75
    assert min(time for name, time in times.items() if name.startswith("paper")) >= 1.8
    assert times["wan"] >= 1.8
    assert joined["training"]["one_ran_out"]
    check_says(
        PAGE,
        f"1.85 with backward at 262,144 tokens ({times['default-262144-backward']:.2f}; "
        f"{times['default-524288-backward']:.2f} at 524,288)",
    )


def test_what_balance_can_gain(rows: Any) -> None:
    balanced, in_order = (rows[f"paper-1048576-forward-{name}"] for name in ("all", "in-order"))
    even, busier = (
        next(kernel["ms"] for kernel in row["kernels"] if kernel["name"] == "attention_kernel")
        for row in (balanced, in_order)
    )
    check_says(
        PAGE,
        f"takes a GPU {even:.1f} ms of {balanced['ms']:.1f}, or in order the busier one "
        f"{busier:.1f}",
    )


def test_the_low_tokens_square(rows: Any) -> None:
    one, two = (
        next(kernel["ms"] for kernel in rows[name]["kernels"] if kernel["name"].startswith("extra"))
        for name in ("default-524288-backward-one", "default-1048576-backward-all")
    )
    check_says(PAGE, f"({one / 2:.1f} ms of a GPU's half at 524,288, {two:.1f} at twice that)")


def _products(rows: Any, name: str) -> float:
    """The time of a row's matrix products, in ms."""
    kernels = rows[name]["kernels"]
    return sum(kernel["ms"] for kernel in kernels if kernel["name"].startswith("nvjet"))


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
    messages = [error for (name, _), error in errors.items() if name.startswith("all-to-all")]
    assert len(layers) == 12
    assert max(layers) < 0.15
    check_says(
        PAGE,
        f"errs by {median(layers):.1%} in the median and {max(layers):.1%} at most in the other "
        f"twelve layers on two GPUs, and by {max(messages):.1%} at most in messages",
    )
