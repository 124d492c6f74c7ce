"""A video that 2 and 4 ranks share gives what one process gives: outputs and every gradient."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.ranks import run_ranks
from tests.support.shared_layers import LAYERS, MODELS

TOLERANCE = 1e-12
"""In float64; sums of ranks are added in another order."""
CASES = [
    *(f"layer: {name}" for name in LAYERS),
    *(f"sample: {name}" for name in LAYERS),
    *(f"model: {name}" for name in MODELS),
]


@pytest.fixture(scope="module", params=[2, 4])
def errors(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each rank found, by case and quantity."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    run_ranks("shared_layers.py", request.param, folder)
    files = [folder / f"errors-{rank}.json" for rank in range(request.param)]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


@pytest.mark.parametrize("case", CASES)
def test_ranks_give_what_one_process_gives(errors: list[dict], case: str) -> None:
    for rank, found in enumerate(errors):
        wrong = {name: error for name, error in found[case].items() if not error <= TOLERANCE}
        assert found[case], case
        assert not wrong, f"rank {rank}: {wrong}"
