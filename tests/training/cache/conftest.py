"""Tiny videos, encoders and a cache of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.support.tiny_cache import cache_config, make_videos
from tests.support.tiny_encoders import save_encoders
from tests.support.tiny_training import tiny_config

from freqformer.training.cache.making import make_cache
from freqformer.training.loop import train


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `videos`, `encoders` and their `cache`; not to be changed."""
    folder = tmp_path_factory.mktemp("cached")
    save_encoders(folder / "encoders")
    make_videos(folder / "videos")
    make_cache(cache_config(folder))
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to change."""
    return Path(shutil.copytree(made, tmp_path / "copied"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on pixels, without text."""
    folder = tmp_path_factory.mktemp("pixels") / "run"
    train(tiny_config(folder))
    return folder
