"""Reads what Nsight Compute told of the attention launch: for counters.py."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from typing import Any

KERNELS = "attention_kernel|query_grads_kernel|video_grads_kernel"
"""Which are profiled, as a regular expression."""
COLUMNS = {
    "Duration": "ms",
    "DRAM Throughput": "dram_percent",
    "L2 Cache Throughput": "l2_percent",
    "L1/TEX Cache Throughput": "l1_percent",
    "Issue Slots Busy": "issue_slots_percent",
    "Warp Cycles Per Issued Instruction": "cycles_per_instruction",
    "Registers Per Thread": "registers",
    "Dynamic Shared Memory Per Block": "shared_bytes",
}
"""Metrics of ncu that are kept, and what they are called here."""
NANOSECONDS = {"ns": 1, "us": 1e3, "µs": 1e3, "ms": 1e6, "s": 1e9}
BUSIEST = re.compile(r"^(\w+) is the highest-utilized pipeline \(([\d.]+)%\) based on elapsed")
STALL = re.compile(
    r"cycles being stalled waiting for (?:an? )?(.+?)\. .*?"
    r"about ([\d.]+)% of the total average"
)
PROBLEMS = ("forward, all blocks", "forward, 10% of blocks", "before gradients, 10% of blocks")
"""Of the launches of `attention_kernel`, in order."""


def read_counters(text: str) -> list[dict[str, Any]]:
    """Kernels of ncu's table of details, in the order of their launches.

    Args:
        text: what `ncu --page details --csv` wrote.
    """
    kernels: dict[str, dict[str, Any]] = {}
    for line in _lines(text):
        name = line["Kernel Name"]
        if not re.search(KERNELS, name):
            continue
        found = kernels.setdefault(line["ID"], {"kernel": name})
        metric, rule = line["Metric Name"], line["Rule Description"] or ""
        if metric in COLUMNS:
            value = float(line["Metric Value"].replace(",", ""))
            if metric == "Duration":
                value *= NANOSECONDS[line["Metric Unit"]] / 1e6
            found[COLUMNS[metric]] = value
        if busiest := BUSIEST.match(rule):
            found["busiest_pipeline"] = busiest[1]
            found["busiest_percent"] = float(busiest[2])
        if stall := STALL.search(rule):
            found.setdefault("stalls", []).append(
                {"waiting_for": stall[1], "percent": float(stall[2])}
            )
    return list(kernels.values())


def _lines(text: str) -> Iterator[dict[str, str]]:
    """Rows of the table, without what ncu says around it."""
    return iter(csv.DictReader(line for line in text.splitlines() if line.startswith('"')))


def named(kernels: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same with the problem that each launch of the forward belongs to."""
    forwards = iter(PROBLEMS)
    return [
        {
            "problem": next(forwards) if "attention" in x["kernel"] else "gradients, 10% of blocks",
            **x,
        }
        for x in kernels
    ]
