"""What a run consists of: captured, restored, and refused where it belongs to another model."""

from __future__ import annotations

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import nn

from freqformer import FreqFormerTransformer3DModel
from freqformer.attention.head_bands import without_unused
from freqformer.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from freqformer.training.state import capture_run, restore_run


class Run:
    """A model with a parameter that never gets a gradient, in two optimizer groups given in another
    order."""

    def __init__(self, seed: int, width: int = 4, extra: bool = False):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(3, width), nn.LayerNorm(width), nn.Linear(width, 2))
        self.model.register_parameter("unused", nn.Parameter(torch.ones(2)))
        self.model.register_buffer("counter", torch.tensor(seed))
        if extra:
            self.model.append(nn.Linear(2, 2))
        parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(
            [{"params": [p for p in parameters if p.ndim == n]} for n in (2, 1)], lr=0.1
        )
        self.ema = EMAModel(self.model.parameters(), decay=0.9)

    def step(self, seed: int) -> None:
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
        self.model(x).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.model.parameters())

    def parts(self) -> tuple:
        return self.model, self.ema, self.optimizer


def flat(run: Run) -> dict[str, torch.Tensor]:
    return {
        f"{group}/{name}": x.clone()
        for group, tensors in capture_run(*run.parts()).items()
        for name, x in tensors.items()
    }


def assert_equal(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_restored_run_goes_on_bit_for_bit(tmp_path):
    run, other = Run(0), Run(1)
    for seed in range(3):
        run.step(seed)
        other.step(9)
    captured = flat(run)
    assert {name.split("/")[0] for name in captured} == {"model", "ema", "optimizer"}
    assert "optimizer/0.weight/exp_avg" in captured
    assert not any(name.startswith("optimizer/unused") for name in captured)
    path = save_checkpoint(tmp_path, 3, capture_run(*run.parts()), {})
    restore_run(*other.parts(), load_checkpoint(path)[0])
    other.ema.optimization_step = run.ema.optimization_step
    assert_equal(flat(other), captured)
    for seed in (5, 6):
        run.step(seed)
        other.step(seed)
    assert_equal(flat(other), flat(run))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            Run(1, width=5),
            r"model differs from this model in \d+ tensors; the first, 0\.bias, is \(\(4,\)",
        ),
        (Run(1, extra=True), r"model differs .* 3\.bias, is absent in the checkpoint"),
    ],
)
def test_another_model_is_refused_and_left_alone(other, message):
    run = Run(0)
    run.step(0)
    before = flat(other)
    with pytest.raises(CheckpointError, match=message):
        restore_run(*other.parts(), capture_run(*run.parts()))
    assert_equal(flat(other), before)


@pytest.mark.parametrize(
    ("group", "name", "tensor", "message"),
    [
        ("ema", "unused", None, "ema differs .* unused, is absent"),
        ("model", "unused", torch.ones(2, dtype=torch.float64), "model differs .* unused"),
        (
            "optimizer",
            "nowhere/exp_avg",
            torch.ones(2),
            r"optimizer holds nowhere/exp_avg \(2,\), which this model lacks",
        ),
        ("optimizer", "unused/exp_avg", torch.ones(3), r"optimizer holds unused/exp_avg \(3,\)"),
    ],
)
def test_tensors_that_do_not_belong_are_named(group, name, tensor, message):
    run, other = Run(0), Run(1)
    run.step(0)
    groups = {key: dict(tensors) for key, tensors in capture_run(*run.parts()).items()}
    if tensor is None:
        del groups[group][name]
    else:
        groups[group][name] = tensor
    before = flat(other)
    with pytest.raises(CheckpointError, match=message):
        restore_run(*other.parts(), groups)
    assert_equal(flat(other), before)


def test_a_run_of_an_older_version_goes_on():
    """Its weights name no bands, and hold summaries that nothing used, in every group."""
    sizes = {
        "patch_size": (1, 2, 2),
        "num_layers": 1,
        "num_attention_heads": 3,
        "attention_head_dim": 8,
    }
    model = FreqFormerTransformer3DModel(**sizes)
    optimizer = torch.optim.AdamW(model.parameters())
    ema = EMAModel(model.parameters())
    model(torch.randn(1, 3, 2, 4, 4), torch.tensor([500.0])).sample.square().mean().backward()
    optimizer.step()
    groups = capture_run(model, ema, optimizer)
    place = "transformer_blocks.0.attn1"
    old = {group: dict(tensors) for group, tensors in groups.items()}
    del old["model"][f"{place}.allocation"]
    for group, end in (("model", ""), ("ema", ""), ("optimizer", "/exp_avg")):
        old[group][f"{place}.summary_queries{end}"] = torch.randn(3, 2, 8)
    kept = without_unused(old, model)
    assert {group: set(tensors) for group, tensors in kept.items()} == {
        group: set(tensors) for group, tensors in groups.items()
    }
    restore_run(model, ema, optimizer, old)
    # What this version wrote is taken as it is.
    assert without_unused(groups, model) == groups
