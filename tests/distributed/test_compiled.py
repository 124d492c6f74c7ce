"""A compiled block of a video that ranks share is one graph, in which all-to-alls still travel."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.support.ranks import run_ranks
from tests.support.shared_compiled import MODELS

from freqformer.distributed.collective import GRAPHS_HOLD_EXCHANGES

pytestmark = pytest.mark.skipif(
    not GRAPHS_HOLD_EXCHANGES, reason="torch below 2.13: compiled code breaks off at exchanges"
)
THERE = "start start product start product start wait wait wait wait"
BACK = "start start wait product wait product"
"""Gates while queries and keys travel, and values while all three do; the first part of the output
while the second does."""
BACKWARD = re.compile("start( product)+ start wait wait( start){4} wait( product)+ wait")


def results(folder: Path, backend: str, *names: str) -> list[dict[str, Any]]:
    run_ranks("shared_compiled.py", 2, folder, backend, *names, seconds=900)
    files = [folder / f"compiled-{rank}.json" for rank in range(2)]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def check_calls(calls: list[str]) -> None:
    forward, backward = calls
    assert f"{THERE} {BACK}" in forward
    assert BACKWARD.search(backward)


def test_all_layers_and_timesteps_are_one_graph(tmp_path: Path) -> None:
    """Outputs and gradients are those of the blocks as they are, to the last bit."""
    for found in results(tmp_path, "aot", "default"):
        assert found["default"]["graphs"] == 1
        assert found["default"]["error"] == 0
        check_calls(found["default"]["calls"])


@pytest.mark.slow
def test_so_are_other_routers_and_bands(tmp_path: Path) -> None:
    others = [name for name in MODELS if name != "default"]
    for found in results(tmp_path, "aot", *others):
        assert {name: model["graphs"] for name, model in found.items()} == dict.fromkeys(others, 1)
        assert all(model["error"] == 0 for model in found.values())


@pytest.mark.slow
def test_inductor_keeps_the_order(tmp_path: Path) -> None:
    for found in results(tmp_path, "inductor", "default"):
        assert found["default"]["graphs"] == 1
        assert found["default"]["error"] < 1e-5
        check_calls(found["default"]["calls"])
