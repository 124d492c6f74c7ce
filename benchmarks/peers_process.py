"""One peer's process, seen from `peers.py`."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

WORKER = Path(__file__).parent / "peers_worker.py"


class Gone(Exception):
    """A process that ended or didn't answer in time, with what is known of it."""


class Process:
    """A process of `peers_worker.py`, sent lines of JSON and answering each by one."""

    def __init__(self, peer: str, environment: dict[str, str]) -> None:
        self.peer = peer
        self.why: str | None = None
        """Why it is gone."""
        self.late = False
        """Whether it still owes an answer that nobody waits for."""
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), peer],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )

    def send(self, do: str, **told: Any) -> None:
        """Tell it what to do next; Gone where it has ended."""
        if self.why is not None:
            raise Gone(self.why)
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **told}) + "\n")
            self.process.stdin.flush()
        except OSError:
            self._end("its process ended")

    def answer(self, seconds: float, *, spare: bool = False) -> Any:
        """What it found. Gone where it ended or needs longer; then it is stopped too, unless it is
        spared: `caught_up` says when it can be asked again."""
        if self.why is not None:
            raise Gone(self.why)
        if not self._speaks(max(seconds, 0.0)):
            why = f"no answer in {max(seconds, 0.0):.0f} s"
            if not spare:
                self._end(why)
            self.late = True
            raise Gone(why)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self._end("its process ended")
        return json.loads(line)

    def caught_up(self) -> bool:
        """Whether it owes no answer; what it answers late is dropped."""
        if self.late and self._speaks(0.0):
            self.late = False
            self.answer(0.0)
        return not self.late

    def _speaks(self, seconds: float) -> bool:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        return bool(ready)

    def ask(self, seconds: float, do: str, **told: Any) -> Any:
        """Send, and wait for the answer."""
        self.send(do, **told)
        return self.answer(seconds)

    def stop(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            with suppress(OSError):  # what it was still to be told
                if stream is not None:
                    stream.close()

    def _end(self, why: str) -> None:
        self.stop()
        self.why = why
        raise Gone(f"{why} (exit status {self.process.returncode})")
