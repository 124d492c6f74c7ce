"""A process of `layers.py` that times one version of the code: told what to do by lines of JSON.

Its argument is the folder of `freqformer`, first in PYTHONPATH. Every line in is answered by one
line out.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import freqformer
import record
from freqformer.grid import Grid
from layer_rows import KINDS, ROWS, Size, Timed, backend_of, drawn, forget_inputs, record_of

SHOWN = 256
"""Values of an output that are sent, to be compared."""


class Worker:
    """The calls that are made and can be timed, by name."""

    def __init__(self) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        self.made: dict[str, Timed] = {}
        self.grad_out: Tensor | None = None
        """Of the outputs of a size, which are all as large."""

    def make(self, grid: list[int], heads: int, head_dim: int, row: str, kind: str) -> Any:
        """Make one row of a size, whatever was made before; it stays until `drop`."""
        num_frames, height, width = grid
        size = Size(Grid(num_frames, height, width), heads, head_dim)
        self.made[f"{kind} {row}"] = KINDS[kind](row, size, self.device, self.dtype)
        impl = None if ROWS[row].dense else backend_of(size, self.device, self.dtype)
        return {"config": record_of(ROWS[row]).to_dict(), "impl": impl}

    def check(self, name: str, backward: bool) -> Any:
        """Run once, which compiles what has to be: time, memory, and a sample of the result."""
        start = time.perf_counter()
        try:
            run = self._pass(name, backward)
            self._reset_peak()
            out = run().flatten()
        except RuntimeError as error:  # not enough memory is one
            return {"failed": f"{type(error).__name__}: {error}"[:SHOWN]}
        if not bool(out.isfinite().all()):
            return {"failed": "its result isn't finite"}
        return {
            "sample": out[:: max(1, len(out) // SHOWN)].double().tolist(),
            "seconds": time.perf_counter() - start,
            "peak_bytes": self._peak(),
        }

    def measure(self, name: str, backward: bool, repeats: int) -> Any:
        """Median time of some calls in a row, after one that isn't timed if they are several."""
        run = self._pass(name, backward)
        if self.device == "cuda":
            return {"ms": record.median_ms(run, repeats, warmup=int(repeats > 1))}
        start = time.perf_counter()
        run()
        return {"ms": (time.perf_counter() - start) * 1e3}

    def launches(self, name: str) -> Any:
        """What a forward runs on the device, and what of it isn't a projection."""
        timed = self.made[name]
        if timed.project is None or self.device != "cuda":
            return {"failed": "launches are counted of whole layers on a GPU"}
        every = Counter(kernel for kernel, _ in record.launches(timed.forward))
        with torch.no_grad():
            projections = Counter(kernel for kernel, _ in record.launches(timed.project))
        others = every - projections
        return {"all": every.total(), "beside_projections": others.total(), "names": dict(others)}

    def drop(self) -> Any:
        """Give back the memory of all that was made."""
        self.made.clear()
        self.grad_out = None
        forget_inputs()
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
        return {}

    def _pass(self, name: str, backward: bool) -> Callable[[], Tensor]:
        timed = self.made[name]
        if not backward:
            return timed.forward
        if self.grad_out is None:
            out = timed.forward()
            self.grad_out = drawn("grad_out", *out.shape, device=self.device).to(out.dtype)
        grad_out = self.grad_out
        return lambda: timed.backward(grad_out)

    def _reset_peak(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()

    def _peak(self) -> int | None:
        return torch.cuda.max_memory_allocated() if self.device == "cuda" else None


def main() -> None:
    _, source = sys.argv
    found = Path(freqformer.__file__).resolve().parents[1]
    if found != Path(source).resolve():
        raise SystemExit(f"the freqformer of {found} would be timed, and not that of {source}")
    worker, answers = Worker(), sys.stdout
    sys.stdout = sys.stderr  # what libraries print is no answer
    for line in sys.stdin:
        told = json.loads(line)
        answer = getattr(worker, told.pop("do"))(**told)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
