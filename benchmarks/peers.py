"""Attention kernels of other projects and ours on identical lists, in one run on one card: forward
and backward, useful FLOPs of kept blocks, each result checked against float64 before it is timed.

    PYTHONPATH=src:. python benchmarks/peers.py [--seconds 270] [--output FOLDER]

Every peer has a process of its own: it compiles while others do, and what fails there ends no other
row. Then the GPU is one process's at a time, and rounds go through all rows of a group, so that
clocks and heat fall on all; ratios are medians over rounds. A peer that isn't installed, fails, is
wrong or has no time left is named with the reason. Writes peers.json after every group, the most
important first; `python benchmarks/peers_table.py FILE` prints its tables. `--quick` is a try on
the CPU in Triton's interpreter.
"""

from __future__ import annotations

import argparse
import time
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

import record
from peers_groups import GROUPS, PUBLISHED, QUICK_GROUPS, UNIFORM, Group
from peers_process import Gone, Process
from peers_rows import PEERS, Peer

PASSES = {"forward": False, "backward": True}
FIRST_PREPARE, LATER_PREPARE = 130.0, 50.0
"""Seconds that peers get to compile and be checked, in the first group and in each that follows,
unless the run's time ends before. A peer that needs longer is named, and asked again when it is
through."""
TUNE_SECONDS = 30.0
"""That a peer which tunes gets at least."""
MOST_ROUNDS, LEAST_ROUNDS = 7, 3
SHARE = 0.12
"""Of the time left that the rounds of one pass take, where LEAST_ROUNDS take less."""
BATCH_MS = 40.0
"""Time that a row's calls of one round take, about."""
MOST_REPEATS = 20
FEW_HEADS = 6
"""As many as compile the kernels of 24: neither 1 nor a multiple of 16."""
MEASURE_SECONDS, DROP_SECONDS = 60.0, 30.0
"""That a process may take to answer."""
ENVIRONMENT = {
    "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED": "1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",  # there are as many processes as cores
}


def missing(peer: Peer) -> str | None:
    """Why a peer can't be imported, if that is known before a process tries."""
    # Of the package alone: to look inside it would import it here.
    package = None if peer.module is None else peer.module.split(".")[0]
    if package is None or find_spec(package) is not None:
        return None
    return f"{package} is not installed"


def installed(peer: Peer) -> str | None:
    """The version of a peer's package; None for torch's, Triton's and ours, and where its folder
    doesn't say."""
    with suppress(PackageNotFoundError):
        return None if peer.package is None else version(peer.package)
    return None


@dataclass(frozen=True, eq=False)
class Row:
    """One pass of one peer on one work, which its process has checked."""

    peer: Peer
    work: str
    name: str
    backward: bool
    check: dict[str, Any]

    def rate(self, ms: float) -> float:
        """Useful TFLOP/s."""
        return self.check["flops"] / ms / 1e9


class Job(NamedTuple):
    """What a process prepares to leave it on disk."""

    peer: Peer
    works: dict[str, dict[str, Any]]


Times = dict[Row, list[float]]
"""Milliseconds of every row, of the same rounds."""


@dataclass
class Bench:
    """The processes and what is found."""

    peers: list[Peer]
    end: float
    most_rounds: int
    environment: dict[str, str]
    groups: dict[str, Any] = field(default_factory=dict)
    """What is found, by title."""
    processes: dict[str, Process] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds of the run."""
        return self.end - time.monotonic()

    def run(self, group: Group, limit: float, warm: list[Job]) -> None:
        """Measure one group; peers of `warm` compile what later groups need at the same time."""
        print(f"{group.title}: {self.left:.0f} s left", flush=True)
        found: dict[str, Any] = {"works": group.works, "not_measured": {}}
        self.groups[group.title] = found
        end = time.monotonic() + min(limit, self.left)
        others = [self._started(*job) for job in warm if self._hindrance(job.peer) is None]
        ready = self._prepare(group, found, end)
        for process in others:
            with suppress(Gone):
                process.answer(end - time.monotonic())
            process.stop()
        for name, backward in PASSES.items():
            rows = [row for row in ready if row.backward == backward]
            found[name] = _described(self._rounds(rows, found))
            for row, values in found[name].items():
                told = f"{values['ms']:.3f} ms, {values['tflops_per_s']:.0f} TFLOP/s"
                print(f"  {row}, {name}: {told}", flush=True)
        for process in self.processes.values():
            with suppress(Gone):
                if process.caught_up():
                    process.ask(DROP_SECONDS, "drop")

    def stop(self) -> None:
        """End every process."""
        for process in self.processes.values():
            process.stop()

    def _hindrance(self, peer: Peer) -> str | None:
        """Why a peer isn't asked, if it isn't."""
        return "the run's time is over" if self.left < 0 else missing(peer)

    def _started(self, peer: Peer, works: dict[str, dict[str, Any]]) -> Process:
        process = Process(peer.name, self.environment)
        with suppress(Gone):
            process.send("prepare", works=works)
        return process

    def _prepare(self, group: Group, found: dict[str, Any], end: float) -> list[Row]:
        """Let every peer compile and check its rows, those that tune last and one by one."""
        ready: list[Row] = []
        taking = [peer for peer in self.peers if group.of(peer)]
        together = [peer for peer in taking if not peer.tunes]
        for some in (together, *([peer] for peer in taking if peer.tunes)):
            asked = [peer for peer in some if self._ask(peer, group, found)]
            if any(peer.tunes for peer in some):  # the others may have taken all the time
                end = max(end, time.monotonic() + min(TUNE_SECONDS, self.left))
            for peer in asked:
                seconds = end - time.monotonic()
                try:
                    answer = self.processes[peer.name].answer(seconds, spare=True)
                except Gone as gone:
                    self._leave_out(found, [group.row(x, peer.name) for x in group.of(peer)], gone)
                else:
                    ready += self._checked(group, peer, answer, found)
        return sorted(ready, key=lambda row: self.peers.index(row.peer))

    def _ask(self, peer: Peer, group: Group, found: dict[str, Any]) -> bool:
        why = self._hindrance(peer)
        if why is None:
            process = self.processes.get(peer.name)
            try:
                if process is None or process.why is not None:
                    process = self.processes[peer.name] = Process(peer.name, self.environment)
                if not process.caught_up():
                    raise Gone("it still works on an earlier group")
                process.send("prepare", works=group.of(peer))
            except Gone as gone:
                why = str(gone)
        if why is not None:
            self._leave_out(found, [group.row(work, peer.name) for work in group.of(peer)], why)
        return why is None

    def _checked(
        self, group: Group, peer: Peer, answer: dict[str, Any], found: dict[str, Any]
    ) -> list[Row]:
        """Rows that may be timed; reasons of the others are told."""
        rows = []
        for work, checks in answer.items():
            for (name, backward), check in zip(PASSES.items(), checks, strict=True):
                title = group.row(work, peer.name)
                if check is not None and "failed" in check:
                    self._leave_out(found, [f"{title}, {name}"], check["failed"])
                elif check is not None:
                    rows.append(Row(peer, work, title, backward, check))
                    print(f"  {title}, {name}: error {check['relative_error']:.1e}", flush=True)
        return rows

    def _leave_out(self, found: dict[str, Any], rows: list[str], why: object) -> None:
        for row in rows:
            found["not_measured"][row] = str(why)
            print(f"  {row} isn't measured: {why}", flush=True)

    def _rounds(self, rows: list[Row], found: dict[str, Any]) -> Times:
        """Time all rows in turn, forwards and backwards through them; one that fails is left
        out."""
        once = dict.fromkeys(rows, BATCH_MS)
        if self.most_rounds > 1:  # a try needs no even batches
            once = self._round(rows, dict.fromkeys(rows, 1), found)
        repeats = {
            row: max(1, min(MOST_REPEATS, round(BATCH_MS / max(ms, 1e-3))))
            for row, ms in once.items()
        }
        start, seconds = time.monotonic(), SHARE * self.left
        times: Times = {row: [] for row in once}
        for number in range(self.most_rounds):
            spent = time.monotonic() - start
            if (number >= LEAST_ROUNDS and spent > seconds) or (number and self.left < 0):
                break
            order = list(times) if number % 2 == 0 else list(times)[::-1]
            new = self._round(order, repeats, found)
            times = {row: [*before, new[row]] for row, before in times.items() if row in new}
        return times

    def _round(
        self, rows: list[Row], repeats: dict[Row, int], found: dict[str, Any]
    ) -> dict[Row, float]:
        """Milliseconds of a call, of every row that still runs."""
        times = {}
        for row in rows:
            process = self.processes[row.peer.name]
            told = {"work": row.work, "backward": row.backward, "repeats": repeats[row]}
            try:
                answer = process.ask(MEASURE_SECONDS, "measure", **told)
            except Gone as gone:
                answer = {"failed": str(gone)}
            if "failed" in answer:
                title = f"{row.name}, {'backward' if row.backward else 'forward'}"
                self._leave_out(found, [title], f"while it was timed: {answer['failed']}")
            else:
                times[row] = answer["ms"]
        return times


def _described(times: Times) -> dict[str, Any]:
    """Every row of one pass, beside the first of its work, and beside the same peer on uniform
    lists."""
    first: dict[str, Row] = {}
    for row in times:
        first.setdefault(row.work, row)
    uniform = {row.peer: row for row in times if row.work == UNIFORM}
    found = {}
    for row, rounds in times.items():
        values: dict[str, Any] = {
            "ms": median(rounds),
            "tflops_per_s": row.rate(median(rounds)),
            "deterministic": not row.backward or row.peer.deterministic,
            **row.check,
        }
        reference, even = first[row.work], uniform.get(row.peer)
        if row is not reference:
            values["reference"] = reference.name
            values["times_reference_rate"] = _times(row, reference, times)
        if even is not None and row is not even:
            values["share_of_uniform_rate"] = _times(row, even, times)
        found[row.name] = values | {"rounds": rounds}
    return found


def _times(row: Row, other: Row, times: Times) -> float:
    """Median over rounds of a row's rate as a multiple of another's."""
    pairs = zip(times[row], times[other], strict=True)
    return median(row.rate(ms) / other.rate(other_ms) for ms, other_ms in pairs)


def jobs_ahead(groups: tuple[Group, ...], peers: list[Peer]) -> list[Job]:
    """What is compiled while the first group is prepared, and later found on disk: kernels that are
    compiled for every size, and ours for whole layers, of a few heads."""
    jobs: list[Job] = []
    for peer in peers:
        sizes = {groups[0].size}
        for group in groups[1:]:
            works = group.of(peer)
            if works and peer.by_shape and group.size not in sizes:
                jobs.append(Job(peer, works))
                sizes.add(group.size)
            elif any(told["kind"] == "layer" for told in works.values()):
                few = {name: told | {"heads": FEW_HEADS} for name, told in works.items()}
                jobs.append(Job(peer, few))
    return jobs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = [peer.name for peer in PEERS]
    parser.add_argument("--peers", nargs="+", choices=names, default=names, help="all by default")
    parser.add_argument("--seconds", type=float, default=270, help="for the whole run; 270")
    parser.add_argument("--quick", action="store_true", help="tiny works, on the CPU")
    parser.add_argument("--output", type=Path, default=record.RESULTS, help="for peers.json")
    parser.add_argument("--commit", help="of this code, where the machine has no git")
    arguments = parser.parse_args()
    if not arguments.quick and not torch.cuda.is_available():
        raise SystemExit("no CUDA GPU: this benchmark measures one; --quick is a try without")
    start = time.monotonic()
    environment, groups = ENVIRONMENT, GROUPS
    if arguments.quick:
        groups = QUICK_GROUPS
        environment = ENVIRONMENT | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    peers = [peer for peer in PEERS if peer.name in arguments.peers]
    rounds = 1 if arguments.quick else MOST_ROUNDS
    bench = Bench(peers, start + arguments.seconds, rounds, environment)
    results: dict[str, Any] = {
        "dtype": "float32" if arguments.quick else "bfloat16",
        "versions": {peer.package: installed(peer) for peer in peers if peer.package},
        "groups": bench.groups,
        "published": PUBLISHED,
    }
    try:
        for number, group in enumerate(groups):
            first = number == 0 and not arguments.quick
            jobs = jobs_ahead(groups, peers) if first else []
            limit = FIRST_PREPARE if number == 0 or arguments.quick else LATER_PREPARE
            bench.run(group, limit, jobs)
            results["seconds"] = time.monotonic() - start
            path = record.save("peers", results, arguments.output, arguments.commit)
            print(f"wrote {path} after {results['seconds']:.0f} s", flush=True)
    finally:
        bench.stop()


if __name__ == "__main__":
    main()
