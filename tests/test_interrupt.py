"""Signals: in processes of their own, which the handlers may end, and in this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from freqformer import _interrupt
from freqformer._interrupt import Interrupted, between_steps, raising

FILE = Path(_interrupt.__file__)
BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


def ended(code: str, number: int) -> subprocess.CompletedProcess[str]:
    """A process that runs this code; `here` sends it the signal. It loads the module alone, without
    torch."""
    start = f"""
        import importlib.util, os, signal, sys
        sys.dont_write_bytecode = True
        spec = importlib.util.spec_from_file_location("interrupt", {str(FILE)!r})
        interrupt = importlib.util.module_from_spec(spec)
        sys.modules["interrupt"] = interrupt
        spec.loader.exec_module(interrupt)
        def here():
            os.kill(os.getpid(), {int(number)})
            for _ in range(10**6): pass  # a handler runs between two instructions
    """
    whole = textwrap.dedent(start) + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, timeout=60)


@BOTH
def test_a_command_that_starts_ends_at_once_without_a_traceback(number):
    done = ended("interrupt.end_at_once()\nhere()\nprint('went on')", number)
    assert done.returncode == 128 + number
    assert done.stdout == ""
    assert done.stderr.splitlines() == [f"stopped by {_interrupt.signal_name(number)}"]


@BOTH
def test_the_body_of_a_command_tidies_up(number):
    code = """
        interrupt.end_at_once()
        try:
            with interrupt.raising():
                try:
                    here()
                finally:
                    print("tidied")
        except interrupt.Interrupted as error:
            print(error.exit_status, error)
    """
    done = ended(code, number)
    tidied, said = done.stdout.splitlines()
    assert tidied == "tidied"
    assert said.startswith(
        f"{128 + number} stopped by {_interrupt.signal_name(number)}: nothing half-written is left"
    )
    assert done.stderr == ""


@BOTH
@pytest.mark.parametrize(
    "body",
    [
        # The second signal while the first is tidied up.
        "    try: here()\n    finally: here()",
        # An exception in a destructor is printed and passed over.
        "    class Lost:\n        def __del__(self): here()\n    lost = Lost()\n    del lost",
        # Some imports catch all exceptions, to go on without a package.
        "    import interrupted_import",
    ],
    ids=["twice", "destructor", "import"],
)
def test_what_would_be_lost_ends_at_once(number, body, tmp_path):
    module = "import __main__\ntry: __main__.here()\nexcept BaseException: pass\n"
    (tmp_path / "interrupted_import.py").write_text(module)
    code = (
        f"sys.path.insert(0, {str(tmp_path)!r})\nwith "
        f"interrupt.raising():\n{body}\nprint('went on')"
    )
    done = ended(code, number)
    assert done.returncode == 128 + number
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


@BOTH
def test_a_loop_finishes_its_step_and_a_second_signal_ends_it(number, capfd):
    steps = []
    with between_steps("finishing the step") as stop:
        for _ in range(5):
            if stop.asked:
                break
            steps.append("begun")
            if len(steps) == 3:
                os.kill(os.getpid(), number)
            steps.append("done")
    assert steps == ["begun", "done"] * 2
    assert stop.signal == number
    name = _interrupt.signal_name(number)
    assert f"{name}: finishing the step; once more to stop now" in capfd.readouterr().err
    assert str(stop.interrupted(" after step 2")) == f"stopped by {name} after step 2"
    with between_steps("finishing the step") as stop:
        os.kill(os.getpid(), number)
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), number)


def test_handlers_are_put_back_and_a_callers_own_stay():
    before = [signal.getsignal(number) for number in _interrupt.SIGNALS]
    with raising(), between_steps("x"):
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert [signal.getsignal(number) for number in _interrupt.SIGNALS] == before
    seen = []
    signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with between_steps("x") as stop:
            os.kill(os.getpid(), signal.SIGTERM)
        assert (seen, stop.asked) == ([signal.SIGTERM], False)
    finally:
        signal.signal(signal.SIGTERM, before[1])


def test_other_threads_leave_signals_alone():
    found = []

    def work() -> None:
        with between_steps("x") as stop, raising():
            found.append((signal.getsignal(signal.SIGINT), stop.asked))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(before, False)]


def test_interrupted_is_the_exception_of_ctrl_c():
    assert issubclass(Interrupted, KeyboardInterrupt)
    assert [Interrupted(number).exit_status for number in _interrupt.SIGNALS] == [130, 143]
