"""Processor seconds of `import freqformer` and `freqformer --help` beside `import torch`, in fresh
processes.

PYTHONPATH=src python benchmarks/import_time.py [--runs 7]

Names of the package are imported when they are first used, so what is timed is the import of every
name that needs torch alone. One thread imports, so on a free core processor seconds are those on
the clock; beside other load they stay comparable. The least of several runs counts.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

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
    runs = parser.parse_args().runs
    # One of each in turn, so that a busy moment does not fall on one kind alone; the first round
    # fills the disk's cache.
    rounds = [
        {name: seconds(arguments) for name, arguments in CASES.items()} for _ in range(runs + 1)
    ][1:]
    least = {name: min(one[name] for one in rounds) for name in CASES}
    for name, taken in least.items():
        beyond = taken - least["import torch"]
        verdict = f"  (at most {LIMITS[name]:+.2f} s)" if name in LIMITS else ""
        print(f"{name:34} {taken:6.2f} s  {beyond:+6.2f} s beyond torch{verdict}")
    if any(least[name] - least["import torch"] > limit for name, limit in LIMITS.items()):
        sys.exit("above a limit")


if __name__ == "__main__":
    main()
