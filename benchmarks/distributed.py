"""Several GPUs of one host beside one of them: all-to-alls by size, whole layers that share a
video, overlapped or not, heads dealt by cost or in order, a training step that one GPU has no
memory for, and a block of Wan in diffusers.

Needs as many GPUs as ranks, and NCCL; on a CPU `--tiny` tries the same over gloo:

    PYTHONPATH=src:. torchrun --nproc-per-node 2 benchmarks/distributed.py

Every row is a file of its own in `distributed/`, written as soon as it is measured, and a row whose
file is there is left out: so the same command, given again, goes on where a call stopped. It begins
no row that it could not end within `--seconds`, going by the longest so far, and says which are
left. `--rows` chooses some of them and `--skip` leaves some out; rows on one GPU also run with one
rank.
benchmarks/distributed_table.py joins the files.
"""

from __future__ import annotations

import argparse
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

import record
from distributed_rows import DEVICE, TINY, Row, Sizes, all_rows
from freqformer.distributed import make_mesh

FOLDER = "distributed"
LONGEST_WAIT = timedelta(seconds=280)
"""Of the other ranks while the first measures one GPU, and for a rank that has failed."""


def missing(names: list[str], folders: list[Path]) -> list[str]:
    """Rows that no folder has a file of."""
    return [name for name in names if not any((at / f"{name}.json").exists() for at in folders)]


def measure(names: list[str], rows: dict[str, Row], mesh: Any, options: Any) -> dict[str, str]:
    """Measure rows while there is time, and write each: names of those that are left or failed, and
    why."""
    began = time.monotonic()
    longest, undone = 0.0, {}
    for name in names:
        # The first rank decides for all.
        told = [time.monotonic() - began + longest <= options.seconds]
        dist.broadcast_object_list(told, src=0)
        if not told[0]:
            undone[name] = "no time left"
            continue
        started = time.monotonic()
        try:
            row = rows[name](mesh)
        except ImportError as error:
            undone[name] = str(error)
            continue
        longest = max(longest, time.monotonic() - started)
        if dist.get_rank() == 0:
            found = {"row": name, "ranks": dist.get_world_size(), **row}
            record.save(name, {"distributed": found}, options.output / FOLDER, options.commit)
            print(found, flush=True)
    return undone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="of those that --list prints")
    parser.add_argument("--skip", nargs="+", metavar="ROW", default=[], help="rows to leave out")
    parser.add_argument("--list", action="store_true", help="print the rows, and measure none")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the command")
    parser.add_argument("--again", action="store_true", help="measure rows that are there, too")
    parser.add_argument("--seconds", type=float, default=250)
    parser.add_argument("--output", type=Path, default=record.RESULTS)
    parser.add_argument("--commit")
    options = parser.parse_args()
    rows = all_rows(TINY if options.tiny else Sizes())
    if options.list:
        print("\n".join(rows))
        return
    if unknown := {*(options.rows or ()), *options.skip} - set(rows):
        parser.error(f"no such rows: {', '.join(sorted(unknown))}; --list prints them")
    if DEVICE == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if DEVICE == "cuda" else "gloo", timeout=LONGEST_WAIT)
    mesh = make_mesh(cp=dist.get_world_size(), device_type=DEVICE)
    folders = [options.output / FOLDER, record.RESULTS / FOLDER]
    wanted = set(options.rows or rows) - set(options.skip)
    names = [name for name in rows if name in wanted]
    if dist.get_world_size() == 1:
        names = [name for name in names if name.endswith("-one")]
    # Decided by one rank: the others may look when the first file is there.
    told: list[Any] = [names if options.again else missing(names, folders)]
    dist.broadcast_object_list(told, src=0)
    undone = measure(told[0], rows, mesh, options)
    if dist.get_rank() == 0:
        for name, reason in undone.items():
            print(f"left: {name} ({reason})", flush=True)
        print(f"{len(told[0]) - len(undone)} rows measured, {len(undone)} left", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
