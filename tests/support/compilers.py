"""A process in which Triton compiles for GPUs that aren't here, and that answers many questions: it
takes as long to start as to compile a kernel or two.

TRITON_INTERPRET is not set in it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import IO, Any


class Compilers:
    """A process of a module that calls `serve`: it starts with the first question, and `close` ends
    it."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._process: subprocess.Popen[str] | None = None
        self._said: IO[str] | None = None

    def ask(self, *question: Any) -> Any:
        """What the module's function gives for these arguments; AssertionError with what the
        process said where it fails."""
        process = self._process = self._process or self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        print(json.dumps(question), file=process.stdin, flush=True)
        line = process.stdout.readline()
        assert line, f"the compiling process ended: {self._last_words(process)}"
        answer = json.loads(line)
        assert "failed" not in answer, answer["failed"]
        return answer["found"]

    def _last_words(self, process: subprocess.Popen[str]) -> str:
        assert self._said is not None
        process.wait()
        self._said.seek(0)
        return self._said.read()[-4000:]

    def _started(self) -> subprocess.Popen[str]:
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115  open until `close`
        environment = {key: x for key, x in os.environ.items() if key != "TRITON_INTERPRET"}
        return subprocess.Popen(
            [sys.executable, "-m", self._module, "serve"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )

    def close(self) -> None:
        if self._process is not None and self._said is not None:
            self._process.communicate()
            self._said.close()


def serve(function: Callable[..., Any]) -> None:
    """Answer every line of standard input, arguments of `function` as JSON, with a line of what it
    returns."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what compilers print is no answer
        for line in sys.stdin:
            try:
                answer = {"found": function(*json.loads(line))}
            except Exception:
                answer = {"failed": traceback.format_exc()[-4000:]}
            print(json.dumps(answer), file=answers, flush=True)
