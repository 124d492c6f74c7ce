"""What importing the package costs: torch and nothing else, and names come when they are first
used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import freqformer

LAZY = {
    "diffusers",
    "accelerate",
    "safetensors",
    "av",
    "matplotlib",
    "plotly",
    "typer",
    "rich",
    "tensorboard",
}
HEAVY = LAZY | {"torch._dynamo", "torch._inductor", "sympy", "triton"}
"""What neither the package nor its operations' names may load; some of it comes when something is
compiled or launched."""
NAMES = """
import sys
import torch
before = set(sys.modules)
import freqformer
for name in set(freqformer.__all__) - {"FreqFormerPipeline", "FreqFormerTransformer3DModel"}:
    getattr(freqformer, name)
print(*sorted(set(sys.modules) - before))
"""
USE = """
import sys
import torch
import freqformer
x = torch.randn(1, 1001, 4, 16, requires_grad=True)
grid, config = freqformer.Grid(num_frames=7, height=11, width=13), freqformer.FreqFormerConfig()
out = freqformer.frequency_attention(x, x, x, grid=grid, allocation=[0, 1, 2, 3], config=config)
out.sum().backward()
freqformer.split_bands(x.flatten(2), grid, config)
freqformer.build_plan(grid, config, num_heads=4, head_dim=16).flops([0, 1, 2, 3])
print(*sorted(name for name in sys.modules if "." not in name))
"""


def test_operations_load_torch_alone() -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", USE], capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    loaded = ran.stdout.split()
    assert "torch" in loaded
    assert not set(loaded) & LAZY


def test_names_load_torch_alone() -> None:
    ran = subprocess.run([sys.executable, "-c", NAMES], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    loaded = set(ran.stdout.split())
    assert "freqformer.attention" in loaded
    assert not loaded & HEAVY


def test_the_package_itself_loads_nothing() -> None:
    code = "import sys, freqformer; print(freqformer.__version__, *sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    version, *loaded = ran.stdout.split()
    assert version == freqformer.__version__
    assert not set(loaded) & {"torch", "numpy"}


def test_top_level_names() -> None:
    assert len(freqformer.__all__) <= 12
    assert sorted(freqformer.__all__) == list(freqformer.__all__)
    for name in freqformer.__all__:
        assert getattr(freqformer, name).__name__ == name
    assert set(freqformer.__all__) <= set(dir(freqformer))
    asked = {
        "Band",
        "FreqFormerConfig",
        "FreqFormerPipeline",
        "FreqFormerTransformer3DModel",
        "Grid",
    }
    assert asked | {"frequency_attention", "split_bands"} <= set(freqformer.__all__)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="'Bands'"):
        freqformer.Bands
