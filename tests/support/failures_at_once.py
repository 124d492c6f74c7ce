"""A plugin of pytest that writes every result as soon as it is there, failures whole: what a run
that its time ends has found is not lost. `pytest -p tests.support.failures_at_once`, with the
file's name in FAILURES_AT_ONCE. Of several processes the first one writes, which hears of all.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest


class Writer:
    def __init__(self, path: Path) -> None:
        self.path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        line = f"{report.outcome} {report.duration:.1f} s {report.nodeid} {report.when}\n"
        with self.path.open("a") as file:
            file.write(line)
            if report.failed:
                file.write(f"{report.longreprtext[-6000:]}\n")


def pytest_configure(config: pytest.Config) -> None:
    name = os.environ.get("FAILURES_AT_ONCE")
    if name and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Writer(Path(name)))
