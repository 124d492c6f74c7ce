"""Keeps the results of a fixed set of calls, so that later code can be held to agree with them.

    git worktree add ../before f64bcc1
    PYTHONPATH=../before/src:. python tools/agreement.py --commit f64bcc1

runs tests/agreement/cases.py with that commit's code on the CPU, by its reference in float64, and
writes tests/agreement/data/results.safetensors and cases.json.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from tests.agreement.calls import SUMS, VALUES, run
from tests.agreement.cases import LAYERS, OPERATIONS

FOLDER = Path("tests/agreement/data")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--commit", required=True, help="of the code that runs")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the two files")
    arguments = parser.parse_args()
    kept: dict[str, torch.Tensor] = {}
    for case in (*OPERATIONS, *LAYERS):
        results = run(case, "reference", torch.float64)
        kept |= {f"{case.name}/{name}": x.float() for name, x in results.items()}
        print(f"{case.name}: {', '.join(results)}", flush=True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    save_file(kept, arguments.output / "results.safetensors")
    record = {
        "commit": arguments.commit,
        "torch": torch.__version__,
        "code": "impl='reference', float64, on the CPU; kept in float32",
        "values": VALUES,
        "sums": SUMS,
        "operations": [asdict(case) for case in OPERATIONS],
        "layers": [asdict(case) for case in LAYERS],
    }
    (arguments.output / "cases.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
