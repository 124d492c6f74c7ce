"""What Nsight Compute wrote is read as it stands there."""

from __future__ import annotations

import pytest
from benchmarks.counters_table import named, read_counters

TITLES = (
    '"ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value",'
    '"Rule Name","Rule Description"'
)
BARRIER = (
    "On average, each warp of this workload spends 2.9 cycles being stalled waiting for sibling "
    "warps at a CTA barrier. A high number is caused by diverging code. This stall type represents "
    "about 34.7% of the total average of 8.4 cycles between issuing two instructions."
)
BUSIEST = "Tensor is the highest-utilized pipeline (72.5%) based on elapsed cycles in the workload."


def table(*rows: tuple[str, ...]) -> str:
    lines = (",".join(f'"{cell}"' for cell in row) for row in rows)
    return "\n".join(["==PROF== Connected", TITLES, *lines])


def test_metrics_pipelines_and_stalls() -> None:
    text = table(
        ("0", "attention_kernel", "SpeedOfLight", "Duration", "us", "2,740.5", "", ""),
        ("0", "attention_kernel", "SpeedOfLight", "L2 Cache Throughput", "%", "49.8", "", ""),
        ("0", "attention_kernel", "WarpStateStats", "", "", "", "CPIStall", BARRIER),
        ("0", "attention_kernel", "Compute", "", "", "", "HighPipeUtilization", BUSIEST),
        ("1", "gather_grads_kernel", "SpeedOfLight", "Duration", "ns", "5", "", ""),
        ("2", "query_grads_kernel", "SpeedOfLight", "Duration", "ns", "3,000,000", "", ""),
    )
    forward, gradients = named(read_counters(text))
    assert forward["ms"] == pytest.approx(2.7405)
    assert forward["l2_percent"] == 49.8
    assert (forward["busiest_pipeline"], forward["busiest_percent"]) == ("Tensor", 72.5)
    assert forward["stalls"] == [{"waiting_for": "sibling warps at a CTA barrier", "percent": 34.7}]
    assert forward["problem"] == "forward, all blocks"
    assert gradients["ms"] == 3.0
    assert gradients["problem"] == "gradients, 10% of blocks"
