"""Processor seconds of `import freqformer` and `freqformer --help` beside `import torch`, in fresh
processes.

PYTHONPATH=src python benchmarks/import_time.py [--runs 7] [--output FOLDER]

Names of the package are imported when they are first used, so what is timed is the import of every
name that needs torch alone. One thread imports, so on a free core processor seconds are those on
the clock; beside other load they stay comparable. The median of several runs counts. Writes
import_time.json.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import record

MODEL = ("FreqFormerPipeline", "FreqFormerTransformer3DModel")
CASES = {
    "python": ["-c", ""],
    "import torch": ["-c", "import torch"],
    "import freqformer, every name": [
        "-c",
        f"import freqformer\nfor name in set(freqformer.__all__) - set({MODEL}): "
        "getattr(freqformer, name)",
    ],
    "import freqformer, the model too": [
        "-c",
        "import freqformer\nfor name in freqformer.__all__: getattr(freqformer, name)",
    ],
    "freqformer --help": ["-m", "freqformer", "--help"],
}
LIMITS = {"import freqformer, every name": 0.6, "freqformer --help": 0.7}
"""Processor seconds beyond `import torch` that are allowed."""


def seconds(arguments: list[str]) -> float:
    """Processor time of one fresh process."""
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{arguments} ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--runs", type=int, default=7, help="fresh processes of each kind; 7 by default"
    )
    parser.add_argument(
        "--output", type=Path, default=record.RESULTS, help="folder for import_time.json"
    )
    parser.add_argument("--commit", help="of this code, where the machine has no git")
    arguments = parser.parse_args()
    # One of each in turn, so that a busy moment does not fall on one kind alone; the first round
    # fills the disk's cache.
    rounds = [
        {name: seconds(typed) for name, typed in CASES.items()} for _ in range(arguments.runs + 1)
    ][1:]
    cases = summary(rounds)
    for name, found in cases.items():
        verdict = f"  (at most {LIMITS[name]:+.2f} s)" if name in LIMITS else ""
        told = f"{found['seconds']:6.2f} s  {found['beyond_torch']:+6.2f} s beyond torch"
        print(f"{name:34} {told}{verdict}")
    results = {"unit": "processor seconds", "cores": os.cpu_count(), "cases": cases}
    print(f"wrote {record.save('import_time', results, arguments.output, arguments.commit)}")
    if any(cases[name]["beyond_torch"] > limit for name, limit in LIMITS.items()):
        sys.exit("above a limit")


def summary(rounds: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Medians by case, of the time and of what a round took longer than its `import torch`."""
    return {
        name: {
            "seconds": median(one[name] for one in rounds),
            "beyond_torch": median(one[name] - one["import torch"] for one in rounds),
            "runs": [one[name] for one in rounds],
        }
        for name in CASES
    }


if __name__ == "__main__":
    main()
