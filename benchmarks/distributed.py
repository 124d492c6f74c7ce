"""Several GPUs of one host beside one of them: all-to-alls by size, whole layers that share a
video, overlapped or not, heads dealt by cost or in order, a training step that one GPU has no
memory for, and a block of Wan in diffusers.

Needs as many GPUs as ranks, and NCCL; on a CPU `--tiny` tries the same over gloo:

    PYTHONPATH=src:. torchrun --standalone --local-addr 127.0.0.1 --nproc-per-node 2 \
        --max-restarts 5 benchmarks/distributed.py

A call writes one file, `distributed/1.json` or the next number, after every row, and leaves out
rows that files there have: so the same command, given again, goes on where a call stopped. Rows on
one GPU run on the first, while the others wait.

It begins no row that it could not end within `--seconds` of its start, going by the longest of the
kind, and says which are left. A row that takes longer than `--row-seconds`, or fails, ends the
processes; torchrun starts them again with the next row, and the next call tries it once more, last.
Where one GPU has no memory for a row, that is its result. `--rows` chooses some of them and
`--skip` leaves some out; with one rank only those on one GPU run.
benchmarks/distributed_table.py joins the files.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
import time
import traceback
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.rendezvous import rendezvous

import record
from distributed_calls import Call, Ranks, measured_rows, num_starts
from distributed_measure import DEVICE, Host, LostRank
from distributed_rows import TINY, Row, Sizes, all_rows
from freqformer.distributed import make_mesh

FOLDER = "distributed"
NCCL_WAIT = timedelta(seconds=300)
"""Of NCCL, which a row's own limit comes before."""
UNKNOWN_SECONDS = 40.0
"""What the first row of a kind is taken to last, at most half of a call."""
GRACE = 15.0
"""Seconds that a row may run over the call's."""


def missing(names: list[str], call: Call, others: list[Path]) -> list[str]:
    """Rows that were not measured yet: those that another call failed in come last, and none that
    this one failed in."""
    done = measured_rows(others)
    new = [name for name in names if name not in done]
    failed = [name for name in names if "failed" in done.get(name, {})]
    return [name for name in (*new, *failed) if name not in call.rows]


def measure(
    names: list[str], rows: dict[str, Row], host: Host, call: Call, options: Any
) -> dict[str, str]:
    """Measure rows while there is time, and write each: names of those that are left, and why."""
    lasted: dict[str, float] = {}
    undone = {}
    for name in names:
        kind = name.partition("-")[0]
        if kind in ("training", "wan") and find_spec("diffusers") is None:
            undone[name] = "diffusers is not installed"
            continue
        # The first rank decides for all.
        left = host.ranks.of_first(call.began + options.seconds - time.time())
        if lasted.get(kind, min(UNKNOWN_SECONDS, options.seconds / 2)) > left:
            undone[name] = "no time left"
            continue
        started = time.monotonic()
        _measure_one(name, rows[name], host, call, min(options.row_seconds, left + GRACE))
        lasted[kind] = max(lasted.get(kind, 0.0), time.monotonic() - started)
    return undone


def _measure_one(name: str, row: Row, host: Host, call: Call, limit: float) -> None:
    """Measure a row and write it; the process ends where it takes longer or fails."""
    first = dist.get_rank() == 0
    if first:
        print(f"{time.time() - call.began:.0f} s: {name}", flush=True)
        call.begin(name, limit)
    host.ranks.gathered("noted")
    faulthandler.dump_traceback_later(limit, exit=True)
    try:
        found = row(host)
    except Exception as error:
        traceback.print_exc()
        found = error.found if isinstance(error, LostRank) else {"failed": repr(error)[:500]}
        call.fail(name, found)
        sys.stdout.flush()
        sys.stderr.flush()
        # Nothing is tidied up: NCCL would wait for the other ranks, and these for it.
        os._exit(1)
    faulthandler.cancel_dump_traceback_later()
    if first:
        call.note(name, found)
        print(found, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="of those that --list prints")
    parser.add_argument("--skip", nargs="+", metavar="ROW", default=[], help="rows to leave out")
    parser.add_argument("--list", action="store_true", help="print the rows, and measure none")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the command")
    parser.add_argument("--again", action="store_true", help="measure rows that are there, too")
    parser.add_argument("--seconds", type=float, default=250)
    parser.add_argument("--row-seconds", type=float, default=120)
    parser.add_argument("--output", type=Path, default=record.RESULTS)
    parser.add_argument("--commit")
    options = parser.parse_args()
    rows = all_rows(TINY if options.tiny else Sizes())
    if options.list:
        print("\n".join(rows))
        return
    if unknown := {*(options.rows or ()), *options.skip} - set(rows):
        parser.error(f"no such rows: {', '.join(sorted(unknown))}; --list prints them")
    wanted = set(options.rows or rows) - set(options.skip)
    names = [name for name in rows if name in wanted]
    store = _start()
    host = Host(make_mesh(cp=dist.get_world_size(), device_type=DEVICE), Ranks(store))
    if dist.get_world_size() == 1:
        names = [name for name in names if name.endswith("-one")]
    folder = options.output / FOLDER
    call = Call.begun(folder, [record.RESULTS / FOLDER], options.commit, num_starts() > 0)
    others = [] if options.again else [record.RESULTS / FOLDER, folder]
    # Decided by one rank: the others may look when its file is there.
    told = host.ranks.of_first({"names": missing(names, call, others), "path": str(call.path)})
    call.path = Path(told["path"])
    undone = measure(told["names"], rows, host, call, options)
    if dist.get_rank() == 0:
        _report(call, undone)
    host.ranks.gathered("done")
    dist.destroy_process_group()


def _start() -> Any:
    """Make the process group, and return torchrun's store, which it is made with."""
    torch.manual_seed(0)
    if DEVICE == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, rank, ranks = next(rendezvous("env://", timeout=NCCL_WAIT))
    # torchrun keeps the store, and addresses in it, of processes that ended.
    store = PrefixStore(f"start-{num_starts()}", store)
    dist.init_process_group(
        "nccl" if DEVICE == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=ranks,
        timeout=NCCL_WAIT,
    )
    return store


def _report(call: Call, undone: dict[str, str]) -> None:
    """Print what is left, and what failed."""
    for name, reason in undone.items():
        print(f"left: {name} ({reason})", flush=True)
    failed = {name: row["failed"] for name, row in call.rows.items() if "failed" in row}
    for name, reason in failed.items():
        print(f"failed: {name} ({reason})", flush=True)
    measured = len(call.rows) - len(failed)
    print(f"{measured} rows measured, {len(failed)} failed, {len(undone)} left", flush=True)


if __name__ == "__main__":
    main()
