"""AdamW in eight bits: what a byte keeps, and how near it stays to whole moments."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.support.tiny_training import changed, losses, tiny_config
from torch import Tensor, nn

from freqformer.training.adamw8bit import AdamW8bit, packed, unpacked


def moments(signed: bool) -> Tensor:
    """Over six decades, as gradients have them; 1,000 values, so the last block isn't full."""
    draw = torch.Generator().manual_seed(0)
    size = 10 ** (-6 * torch.rand(10, 100, generator=draw))
    sign = torch.where(torch.rand(10, 100, generator=draw) < 0.5, -1.0, 1.0)
    return size * sign if signed else size**2


@pytest.mark.parametrize("signed", [True, False])
def test_a_byte_is_right_on_average(signed: bool) -> None:
    """One value is at most a level off, and the mean of many roundings is the value."""
    torch.manual_seed(0)
    x = moments(signed)
    code, scale = packed(x, signed=signed)
    assert (code.dtype, code.shape, scale.shape) == (torch.uint8, x.shape, (4,))
    made = torch.stack([unpacked(*packed(x, signed=signed), signed=signed) for _ in range(400)])
    largest = torch.nn.functional.pad(x.abs().flatten(), (0, 24)).view(4, 256).amax(1)
    assert torch.equal(scale, largest)
    floor = largest.repeat_interleave(256)[:1000].view(10, 100) * (1e-5 if signed else 1e-7)
    assert bool(((made - x).abs() <= 0.1 * x.abs() + floor).all())
    above = x.abs() > floor
    bias = (made.mean(0) - x)[above] / x[above]
    assert float(bias.abs().mean()) < 0.003
    assert signed or bool((made > 0).all())


def test_zeros_stay_zeros() -> None:
    for signed in (True, False):
        code, scale = packed(torch.zeros(300), signed=signed)
        assert not bool(unpacked(code, scale, signed=signed).any())


def fitted(
    kind: type[torch.optim.Optimizer], steps: int = 200
) -> tuple[float, torch.optim.Optimizer]:
    """The loss after so many steps of a regression whose inputs differ in size."""
    torch.manual_seed(0)
    target = torch.randn(64, 128)
    sizes = torch.logspace(-1, 1, 128)
    model = nn.Linear(128, 64)
    optimizer = kind(model.parameters(), lr=1e-2, betas=(0.9, 0.99), weight_decay=0.0)
    loss = torch.tensor(0.0)
    for step in range(steps):
        draw = torch.Generator().manual_seed(step)
        torch.manual_seed(step)
        x = torch.randn(32, 128, generator=draw) * sizes
        loss = nn.functional.mse_loss(model(x), x @ target.T)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach()), optimizer


def test_it_learns_as_whole_moments_do() -> None:
    whole, _ = fitted(torch.optim.AdamW)
    eight, optimizer = fitted(AdamW8bit)
    begun, _ = fitted(torch.optim.AdamW, 1)
    assert whole < begun / 2
    assert eight == pytest.approx(whole, rel=0.05)
    weight, bias = optimizer.param_groups[0]["params"]
    held = sum(x.numel() * x.element_size() for x in optimizer.state[weight].values())
    assert held < 2.1 * weight.numel()
    assert optimizer.state[bias]["exp_avg"].dtype == torch.float32


def test_small_parameters_move_as_torchs_do() -> None:
    torch.manual_seed(0)
    first = [nn.Parameter(torch.randn(20, 30)), nn.Parameter(torch.randn(7))]
    second = copy.deepcopy(first)
    options = {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.1}
    ours, theirs = AdamW8bit(first, **options), torch.optim.AdamW(second, **options)
    for _ in range(5):
        for one, other in zip(first, second, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        ours.step()
        theirs.step()
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other)


def test_a_resumed_run_repeats_the_other(tmp_path: Path) -> None:
    """Bytes and scales are in the checkpoint, and chance follows from the step."""
    config = changed(tiny_config(tmp_path / "whole"), "optimizer", kind="adamw8bit")
    config = changed(config, "run", max_steps=4)
    wide = {**config.model, "num_attention_heads": 3, "attention_head_dim": 16}
    config = type(config)(**{**vars(config), "model": wide})
    whole = losses(config)
    again = type(config)(**{**vars(config), "output": str(tmp_path / "parts")})
    first = losses(changed(again, "run", stop_after_seconds=1e-3))
    assert first + losses(again) == whole
    files = [
        load_file(folder / "checkpoints" / "step-00000004" / "optimizer.safetensors")
        for folder in (tmp_path / "whole", tmp_path / "parts")
    ]
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])
    assert {x.dtype for name, x in files[0].items() if name.endswith("exp_avg")} == {
        *(torch.uint8, torch.float32)
    }
    with pytest.raises(ValueError, match=r"optimizer\.kind was 'adamw8bit' and is 'adamw'"):
        losses(changed(changed(again, "optimizer", kind="adamw"), "run", max_steps=5))


def test_it_is_not_shared_among_ranks(tmp_path: Path) -> None:
    config = changed(tiny_config(tmp_path), "optimizer", kind="adamw8bit")
    parallel = type(config.run.parallel)(dp_shard=2)
    with pytest.raises(ValueError, match="'adamw' is allowed, whose moments are shared"):
        changed(config, "run", parallel=parallel)
