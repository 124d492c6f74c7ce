"""What calls of benchmarks/distributed.py leave: a file each, with the rows it measured, and what
ranks tell one another beside NCCL.

A row is in the file as failed before it begins, so that whatever ends its process, the next one
knows.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch import distributed as dist
from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage]

import record

Rows = dict[str, dict[str, Any]]
LONGEST_WAIT = timedelta(seconds=900)
"""A row's own limit ends its process long before."""
ENDED = "its process ended"


class Ranks:
    """What ranks tell one another through torchrun's store, which needs no GPU: a rank may wait
    while another measures."""

    def __init__(self, store: Any) -> None:
        self._store = PrefixStore("benchmark", store)
        self._store.set_timeout(LONGEST_WAIT)
        self._turn = 0

    def gathered(self, own: Any) -> list[Any]:
        """What every rank tells, as JSON; all ranks call it in one order."""
        self._turn += 1
        self._store.set(f"{self._turn}/{dist.get_rank()}", json.dumps(own))
        told = [f"{self._turn}/{rank}" for rank in range(dist.get_world_size())]
        return [json.loads(self._store.get(key)) for key in told]

    def of_first(self, own: Any) -> Any:
        """What the first rank tells."""
        return self.gathered(own)[0]


def measured_rows(folders: list[Path]) -> Rows:
    """All rows of the files in these folders, by name; what was measured counts, and a failure
    where nothing was."""
    found: Rows = {}
    for folder in folders:
        for path in sorted(folder.glob("*.json"), key=_number):
            for name, row in _rows_of(path).items():
                if "failed" not in row or name not in found:
                    found[name] = row
    return found


@dataclass
class Call:
    """One call: its file, when it began, and the rows so far."""

    path: Path
    commit: str | None
    began: float
    """Seconds since 1970: processes that torchrun starts again go on in the same call."""
    rows: Rows = field(default_factory=dict)

    @classmethod
    def begun(cls, folder: Path, others: list[Path], commit: str | None, again: bool) -> Call:
        """A new call in a folder, numbered after those there and in others; or the one that went on
        there, `again`."""
        numbers = [_number(path) for at in (folder, *others) for path in at.glob("*.json")]
        if not again:
            return cls(folder / f"{max(numbers, default=0) + 1}.json", commit, time.time())
        path = max(folder.glob("*.json"), key=_number)
        return cls(path, commit, json.loads(path.read_text())["began"], _rows_of(path))

    def note(self, name: str, row: dict[str, Any]) -> None:
        """Write a row down, with those that other ranks wrote."""
        self.rows |= _rows_of(self.path)
        self.rows[name] = {"row": name, "ranks": dist.get_world_size(), **row}
        results = {"began": self.began, "distributed": list(self.rows.values())}
        record.save(self.path.stem, results, self.path.parent, self.commit)

    def begin(self, name: str, limit: float) -> None:
        """Write down that a row was begun, which is all that is known if its process ends."""
        self.note(name, {"failed": f"{ENDED}, or it took more than {limit:.0f} s"})

    def fail(self, name: str, row: dict[str, Any]) -> None:
        """Write down why a row ended, unless another rank did: what ranks say that it left alone
        tells less."""
        known = _rows_of(self.path).get(name, {})
        if known.get("failed", "").startswith(ENDED):
            self.note(name, row)


def num_starts() -> int:
    """How often torchrun has started this process before in its call."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _rows_of(path: Path) -> Rows:
    """Rows of one file by name, none where it isn't there yet."""
    if not path.exists():
        return {}
    return {row["row"]: row for row in json.loads(path.read_text())["distributed"]}


def _number(path: Path) -> int:
    return int(path.stem) if path.stem.isdecimal() else 0
