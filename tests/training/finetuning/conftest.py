"""Tiny pipelines with caches, and one run of LoRA."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.support.tiny_finetuning import lora_config, make_pipeline_and_cache

from freqformer.training.loop import train


@pytest.fixture(scope="session")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `pipe`, `videos` and `cache`, of Wan; not to be changed."""
    return make_pipeline_and_cache(tmp_path_factory.mktemp("wan"))


@pytest.fixture(scope="session")
def tuned(wan: Path) -> Path:
    """Three steps of LoRA on it, whose scale is not 1."""
    train(lora_config(wan, wan / "run", alpha=6.0))
    return wan / "run"


@pytest.fixture
def copied(wan: Path, tuned: Path, tmp_path: Path) -> Path:
    """A copy of the folder, its run included, to change."""
    assert tuned.parent == wan
    return Path(shutil.copytree(wan, tmp_path / "copied"))
