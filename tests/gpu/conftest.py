"""Processes of `pytest -m gpu -n COUNT` are dealt out to all GPUs, and give back memory that they
no longer need, since several share one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

WORKER = os.environ.get("PYTEST_XDIST_WORKER")
# Before anything asks CUDA, which looks at the variable once; threads of a process see it too. Set
# it to choose GPUs yourself.
if WORKER and "CUDA_VISIBLE_DEVICES" not in os.environ and torch.cuda.device_count() > 1:
    number = int(WORKER.removeprefix("gw")) % torch.cuda.device_count()
    os.environ["CUDA_VISIBLE_DEVICES"] = str(number)


@pytest.fixture(autouse=True)
def given_back() -> Iterator[None]:
    yield
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
