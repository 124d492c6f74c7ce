"""The quality study: trains attention variants alike, measures them, and writes one result per
variant, seed, number of steps, size and learning rate.

    PYTHONPATH=src:. python -m benchmarks.quality --queue benchmarks/quality/queue.json --compile
    --seconds 540 --state runs/quality
    PYTHONPATH=src:. python -m benchmarks.quality --variants window,soft_routing --seeds 0,1
    PYTHONPATH=src:. python -m benchmarks.quality --report

Tasks that have a result, in the output folder or among the committed ones, are skipped. A run that
the time is up for leaves its state, and the same command goes on with it, bit for bit. On a machine
of several GPUs start the command once for each (`CUDA_VISIBLE_DEVICES=1 python -m ...`): processes
with the same folders share the tasks, and `--processes 2` starts two on one GPU. `--report`
rebuilds the tables and figures of docs/quality.md from the committed results and needs no GPU.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import torch
from benchmarks.quality.clips import measure_clips, prepare_clips
from benchmarks.quality.generated import measure_generated
from benchmarks.quality.page import write_page
from benchmarks.quality.planning import listed
from benchmarks.quality.report import RESULTS
from benchmarks.quality.runs import OPTIMIZER, How
from benchmarks.quality.sizes import SIZES, USUAL
from benchmarks.quality.tasks import Kind, Task, combined, read_queue
from benchmarks.quality.variants import VARIANTS
from benchmarks.quality.working import Places, work

from benchmarks import record

MEASURES = {"generated": measure_generated, "clips": measure_clips}
STATE = Path("runs/quality")
MOST_PROCESSES = 8


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status, 1 where a task failed."""
    began = time.perf_counter()
    given = _parser().parse_args(arguments)
    if given.report:
        print(f"wrote {write_page()}")
        return 0
    if given.prepare_clips:
        print(f"wrote {prepare_clips(given.state)}")
        return 0
    folders = list(dict.fromkeys([given.output, RESULTS]))
    if given.list:
        print(listed(_tasks(given), folders))
        return 0
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "device is 'cuda' and there is none; pass --device cpu, which takes hours, or use a GPU"
        )
    if not 1 <= given.processes <= MOST_PROCESSES:
        raise SystemExit(
            f"processes is {given.processes}; numbers from 1 to {MOST_PROCESSES} are allowed"
        )
    others = [] if given.helper else _helpers(given.processes, arguments)
    how = How(
        device,
        graph=device.type == "cuda" and not given.no_graph,
        compiled=given.compile,
        end=float("inf") if given.seconds is None else began + given.seconds,
        folder=given.state,
    )
    places = Places(folders, record.machine(given.commit), given.processes)
    failed = work(_tasks(given), how, places, MEASURES)
    return max([failed, *(abs(other.wait()) for other in others)])


def _tasks(given: argparse.Namespace) -> list[Task]:
    if given.queue is not None:
        return read_queue(given.queue)
    others = {
        "steps": [given.steps],
        "sizes": [given.tokens],
        "learning_rates": [float(rate) for rate in given.rates.split(",")],
    }
    seeds = [int(seed) for seed in given.seeds.split(",")]
    return combined(given.do, given.variants.split(","), seeds, others)


def _helpers(processes: int, arguments: list[str] | None) -> list[subprocess.Popen]:
    """More processes with the same command, which share its tasks."""
    words = sys.argv[1:] if arguments is None else arguments
    command = [sys.executable, "-m", "benchmarks.quality", *words, "--helper"]
    return [subprocess.Popen(command) for _ in range(processes - 1)]


def _parser() -> argparse.ArgumentParser:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what to do")
    what.add_argument("--queue", type=Path, help="a file of tasks, see benchmarks/quality/tasks.py")
    what.add_argument("--do", choices=get_args(Kind), default="train", help="where there is none")
    what.add_argument("--variants", default=",".join(VARIANTS), help="names, with commas")
    what.add_argument("--tokens", choices=tuple(SIZES), default=USUAL, help="of a clip")
    what.add_argument("--seeds", default="0", help="numbers, with commas")
    what.add_argument("--steps", type=int, default=700)
    what.add_argument(
        "--rates", default=str(OPTIMIZER.peak_rate), help="learning rates, with commas"
    )
    what.add_argument(
        "--report", action="store_true", help="rebuild docs/quality.md from the results"
    )
    what.add_argument("--list", action="store_true", help="what is left, and how long it takes")
    what.add_argument(
        "--prepare-clips",
        action="store_true",
        help="read the real clips that packages bring, for machines that can't decode video",
    )
    where = parser.add_argument_group("where and for how long")
    where.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    where.add_argument("--state", type=Path, default=STATE, help="folder of what goes on later")
    where.add_argument(
        "--seconds", type=float, help="stop training then; what is trained is still validated"
    )
    where.add_argument("--processes", type=int, default=1, help="that share the card")
    where.add_argument("--helper", action="store_true", help=argparse.SUPPRESS)
    where.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    where.add_argument("--no-graph", action="store_true", help="launch every step anew")
    where.add_argument("--compile", action="store_true", help="compile blocks for training")
    where.add_argument("--commit", help="of this code, where the machine has no git")
    return parser


if __name__ == "__main__":
    sys.exit(main())
