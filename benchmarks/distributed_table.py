"""The rows of benchmarks/distributed.py side by side, as a table and as JSON lines:

    PYTHONPATH=src:. python benchmarks/distributed_table.py [FOLDER]

`times_one` is one GPU's time over that of all. Where one GPU has no memory for a length, its time
is that of the longest that fits, in proportion to the tokens, and `one_of` says which.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import record
from distributed_calls import Rows, measured_rows


def read(folder: Path) -> Rows:
    """All rows of a folder, by name.

    Raises:
        ValueError: where there are none, or they were measured on different GPUs or commits.
    """
    files = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    if not files:
        raise ValueError(
            f"{folder} holds no rows; a folder that benchmarks/distributed.py wrote is allowed"
        )
    made = {(file["machine"]["gpu"], file["machine"]["commit"]) for file in files}
    if len(made) > 1:
        raise ValueError(
            f"{folder} holds rows of {sorted(map(str, made))}; those of one GPU and commit are "
            "allowed: measure the others --again"
        )
    return measured_rows([folder])


def joined(rows: Rows) -> Iterator[dict[str, Any]]:
    """One record for everything that was measured on all ranks."""
    for name, row in rows.items():
        if not name.endswith("-all"):
            continue
        stem = name.removesuffix("-all")
        found = {"row": stem, **_figures(row)}
        one = rows.get(f"{stem}-one", {})
        found["one_ran_out"] = "out_of_memory" in one
        if "ms" not in one:
            one = _longest_of_one(rows, row)
        if "ms" in one and "ms" in row:
            found["one_of"] = one["tokens"]
            found["one_ms"] = one["ms"] * row["tokens"] / one["tokens"]
            found["times_one"] = found["one_ms"] / row["ms"]
        for without in ("waited", "in-order"):
            other = rows.get(f"{stem}-{without}", {})
            if "ms" in other and "ms" in row:
                found[f"times_{without}"] = other["ms"] / row["ms"]
        yield found


def _figures(row: dict[str, Any]) -> dict[str, Any]:
    names = ("tokens", "ms", "nccl_ms", "hidden_ms", "peak_gib", "out_of_memory", "failed")
    return {name: row[name] for name in names if name in row}


def _longest_of_one(rows: Rows, row: dict[str, Any]) -> dict[str, Any]:
    """The longest of the same kind that one GPU had memory for; nothing where there is none."""
    same = ("kind", "config", "backward")
    fitting = [
        other
        for other in rows.values()
        if other.get("on") == "one"
        and "ms" in other
        and all(other.get(name) == row.get(name) for name in same)
    ]
    return max(fitting, key=lambda other: other["tokens"], default={})


def table(rows: Rows) -> str:
    """The joined rows as a Markdown table, and the rates of the links."""
    columns = ("row", "ms", "one_ms", "times_one", "times_waited", "times_in-order", "nccl_ms")
    columns = (*columns, "hidden_ms", "peak_gib")
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for found in joined(rows):
        lines.append("| " + " | ".join(_cell(found.get(column)) for column in columns) + " |")
    if "links" in rows:
        lines += ["", "| bytes | ms | GB/s |", "|---|---|---|"]
        for one in rows["links"]["messages"]:
            lines.append(f"| {one['bytes']:,} | {one['ms']:.3f} | {one['gb_per_s']:.1f} |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value:.4g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, nargs="?", default=record.RESULTS / "distributed")
    rows = read(parser.parse_args().folder)
    print(table(rows))
    for found in joined(rows):
        print(json.dumps(found))


if __name__ == "__main__":
    main()
