"""A process of `peers.py` that holds one peer's calls: told what to do by lines of JSON, each
answered by one line.

Its argument is the peer's name. A peer that fails answers with why; one that leaves the GPU in a
bad state ends this process alone.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

import record
from peers_rows import PEERS, Peer, make_work
from peers_work import Grads, Timed, Work

LARGEST_ERROR = 0.01
"""Relative, of a bfloat16 result against float64, above which a row isn't timed."""
LONGEST_TOLD = 400
"""Characters of an error."""


class Worker:
    """One peer, its works and the calls that are ready, by work and pass."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.works: dict[str, Work] = {}
        self.ready: dict[tuple[str, bool], Timed] = {}
        self.broken = False
        """Whether the GPU takes no more calls of this process."""

    def prepare(self, works: dict[str, dict[str, Any]]) -> Any:
        """Drop what there was, make works, compile and check their passes: what every check found,
        by work, forward first."""
        self.drop()
        return {
            name: [self._checked(name, told, backward) for backward in (False, True)]
            for name, told in works.items()
        }

    def measure(self, work: str, backward: bool, repeats: int) -> Any:
        """Median time of some calls in a row, after one that isn't timed."""
        run = self.ready[work, backward].run
        if self.device.type == "cuda":
            return {"ms": record.median_ms(run, repeats, warmup=1)}
        return {"ms": _elapsed_ms(run)}

    def drop(self) -> Any:
        """Give back the memory of all that was made."""
        self.works.clear()
        self.ready.clear()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return {}

    def _checked(self, name: str, told: dict[str, Any], backward: bool) -> dict[str, Any] | None:
        maker = self.peer.maker(backward)
        if maker is None:
            return None
        start = time.perf_counter()
        try:
            if name not in self.works:
                self.works[name] = make_work(told, self.device, self.dtype)
            timed = maker(self.works[name])
            found = self._check(self.works[name], timed)
        except Exception as error:  # of whatever kind: it is told, and others go on
            self.broken = "CUDA error" in str(error)
            torch._dynamo.reset()  # or what failed to compile would run without a graph from now on
            return {"failed": f"{type(error).__name__}: {error}"[:LONGEST_TOLD]}
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # others need it meanwhile
        if "failed" not in found:
            self.ready[name, backward] = timed
        return found | {"prepared_seconds": time.perf_counter() - start}

    def _check(self, work: Work, timed: Timed) -> dict[str, Any]:
        """Two runs: the error of the first, and whether the second has the same bits."""
        first = timed.read(timed.run())
        backward = isinstance(first, Grads)
        error = work.gradient_error(first) if backward else work.output_error(first)
        if not error < LARGEST_ERROR:
            return {"failed": f"relative error {error:.2e} against float64", "wrong": error}
        kept = [work.written(x).clone() for x in (first if backward else [first])]
        second = timed.read(timed.run())
        pairs = zip(kept, second if backward else [second], strict=True)
        return {
            "relative_error": error,
            "same_bits": all(torch.equal(x, work.written(y)) for x, y in pairs),
            "flops": work.pass_flops(backward),
        }


def _elapsed_ms(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    _, name = sys.argv
    worker = Worker(next(peer for peer in PEERS if peer.name == name))
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    for line in sys.stdin:
        told = json.loads(line)
        answer = getattr(worker, told.pop("do"))(**told)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if worker.broken:
            raise SystemExit(f"{name}: the GPU takes no more calls of this process")


if __name__ == "__main__":
    main()
