"""LPIPS is measured where its package is installed, and left out where it isn't."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from freqformer.generation.likeness import lpips


class Distance:
    """In place of the network: the mean difference of values from -1 to 1."""

    def __init__(self, net: str, verbose: bool) -> None:
        assert (net, verbose) == ("alex", False)

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        assert x.shape == (1, 3, 4, 5)
        return (x - y).abs().mean()


def test_it_is_the_mean_over_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    package: Any = ModuleType("lpips")
    package.LPIPS = Distance
    monkeypatch.setitem(sys.modules, "lpips", package)
    first = torch.rand(1, 2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    second = first.clone()
    second[:, 1] = 1 - second[:, 1]
    wanted = 2 * float((first - second)[:, 1].abs().mean()) / 2
    assert lpips(first, second) == pytest.approx(wanted)


def test_it_is_left_out_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    video = torch.zeros(1, 2, 3, 4, 5)
    assert lpips(video, video) is None
