"""Two processes with a clip each train a pipeline as one process does with both, one after the
other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.support.ranks import run_ranks
from tests.support.shared_finetuning import RUNS, write_reports
from tests.support.tiny_finetuning import make_pipeline_and_cache

RESULTS = {
    "lora": "lora/pytorch_lora_weights.safetensors",
    "full": "transformer/diffusion_pytorch_model.safetensors",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs, by one process and by two."""
    folder = make_pipeline_and_cache(tmp_path_factory.mktemp("shared"))
    write_reports(folder, tuple(RUNS), 0, 1)
    run_ranks("shared_finetuning.py", 2, folder, *RUNS, seconds=500)
    return folder


@pytest.mark.parametrize("name", sorted(RUNS))
def test_losses_gradients_and_weights_are_those_of_one_process(runs: Path, name: str) -> None:
    one, two = (json.loads((runs / f"{name}-{ranks}.json").read_text()) for ranks in (1, 2))
    assert len(one) == 2
    for mine, theirs in zip(one, two, strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4)
    weights, others = (load_file(runs / f"{name}-{ranks}" / RESULTS[name]) for ranks in (1, 2))
    assert weights.keys() == others.keys()
    for label, x in weights.items():
        torch.testing.assert_close(others[label], x, rtol=1e-3, atol=1e-5, msg=label)
