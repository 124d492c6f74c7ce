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
from typing import Any


class Compilers:
    """A process of a module that calls `serve`; `close` ends it."""

    def __init__(self, module: str) -> None:
        environment = {key: x for key, x in os.environ.items() if key != "TRITON_INTERPRET"}
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115  open until `close`
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, "serve"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            text=True,
        )

    def ask(self, *question: Any) -> Any:
        """What the module's function gives for these arguments; AssertionError with what the
        process said where it fails."""
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        print(json.dumps(question), file=process.stdin, flush=True)
        line = process.stdout.readline()
        if not line:
            process.wait()
            self.said.seek(0)
        assert line, f"the compiling process ended: {self.said.read()[-4000:]}"
        answer = json.loads(line)
        assert "failed" not in answer, answer["failed"]
        return answer["found"]

    def close(self) -> None:
        self.process.communicate()
        self.said.close()


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
