"""Meshes and models that don't fit are refused with the remedy."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any, cast

import pytest
from torch import distributed as dist
from torch import nn

from freqformer.attention import FreqAttention
from freqformer.distributed import ContextParallel, make_mesh, parallelize


def test_a_process_without_launcher_is_told_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match=r"WORLD_SIZE is not set.*torchrun --nproc-per-node"):
        make_mesh(cp=2)


def test_degrees_make_up_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(ValueError, match=r"1 x 2 x 2 = 4 and 8 ranks run.*torchrun"):
        make_mesh(dp_shard=2, cp=2)
    with pytest.raises(ValueError, match="cp is 0"):
        make_mesh(cp=0)


def test_models_of_others_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model is a Linear.*enable_parallelism"):
        parallelize(nn.Linear(2, 2), None)


def test_a_copy_of_a_layer_shares_with_the_same_ranks() -> None:
    layer = FreqAttention(24, 3)
    context = ContextParallel(cast(Any, object()), 2, 0)
    layer.set_context(context)
    assert copy.deepcopy(layer).context is context
    with pytest.raises(ValueError, match=r"call parallelize\(model, None\) first"):
        pickle.dumps(layer)
    layer.set_context(None)
    assert pickle.loads(pickle.dumps(layer)).context is None


def test_one_rank_shares_with_none(tmp_path: Path) -> None:
    meeting = f"file://{tmp_path / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
    try:
        mesh = make_mesh(cp=1, device_type="cpu")
        assert parallelize(FreqAttention(24, 3), mesh).context is None
        assert ContextParallel.of(mesh).size == 1
    finally:
        dist.destroy_process_group()
