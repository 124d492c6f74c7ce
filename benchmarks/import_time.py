"""Seconds that `import freqformer` and `freqformer --help` take beside `import torch`, in fresh processes.

PYTHONPATH=src python benchmarks/import_time.py [--runs 7]

Names of the package are imported when they are first used, so what is timed is the import of every name that needs torch
alone. The least of several runs counts: other load only adds.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

MODEL = ("FreqFormerPipeline", "FreqFormerTransformer3DModel")
CASES = {
    "python": ["-c", ""],
    "import torch": ["-c", "import torch"],
    "import freqformer, every name": [
        "-c",
        f"import freqformer\nfor name in set(freqformer.__all__) - set({MODEL}): getattr(freqformer, name)",
    ],
    "import freqformer, the model too": [
        "-c",
        "import freqformer\nfor name in freqformer.__all__: getattr(freqformer, name)",
    ],
    "freqformer --help": ["-m", "freqformer", "--help"],
}
LIMITS = {"import freqformer, every name": 0.6, "freqformer --help": 0.7}
"""Seconds beyond `import torch` that are allowed."""


def seconds(arguments: list[str]) -> float:
    """Wall-clock time of one fresh process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="fresh processes of each kind; 7 by default")
    runs = parser.parse_args().runs
    # One of each in turn, so that a busy moment does not fall on one kind alone; the first round fills the disk's cache.
    rounds = [{name: seconds(arguments) for name, arguments in CASES.items()} for _ in range(runs + 1)][1:]
    least = {name: min(one[name] for one in rounds) for name in CASES}
    for name, taken in least.items():
        beyond = taken - least["import torch"]
        verdict = f"  (at most {LIMITS[name]:+.2f} s)" if name in LIMITS else ""
        print(f"{name:34} {taken:6.2f} s  {beyond:+6.2f} s beyond torch{verdict}")
    if any(least[name] - least["import torch"] > limit for name, limit in LIMITS.items()):
        sys.exit("above a limit")


if __name__ == "__main__":
    main()
