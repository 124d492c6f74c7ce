"""Blocks whose weights wait elsewhere compute what they compute without, and hold few at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.tiny_finetuning import lora_config, with_run
from tests.support.tiny_training import changed, losses
from torch import nn
from torch.utils.checkpoint import checkpoint

from freqformer.training.config import TrainConfig
from freqformer.training.finetuning.model import finetuned_model
from freqformer.training.finetuning.offload import OffloadedBlocks


def checkpointed(wan: Path, output: Path, blocks: int) -> TrainConfig:
    """A run that computes activations again, with so many blocks' weights elsewhere."""
    config = with_run(lora_config(wan, output), gradient_checkpointing=True)
    return changed(config, "pipeline", offload_blocks=blocks)


def test_a_run_computes_the_same(wan: Path, tmp_path: Path) -> None:
    plain = losses(checkpointed(wan, tmp_path / "plain", 0))
    assert losses(checkpointed(wan, tmp_path / "apart", 2)) == plain


def test_only_the_last_blocks_lose_their_frozen_weights(wan: Path, tmp_path: Path) -> None:
    model: Any = finetuned_model(checkpointed(wan, tmp_path / "run", 2))
    for number, block in enumerate(model.transformer.blocks):
        for weight in block.parameters():
            assert bool(weight.numel()) == (number == 0 or weight.requires_grad)
    more = checkpointed(wan, tmp_path / "run", 4)
    with pytest.raises(ValueError, match="offload_blocks is 4 and the transformer has 3 blocks"):
        finetuned_model(more)
    with pytest.raises(ValueError, match=r"with run\.gradient_checkpointing=False"):
        lora_config(wan, tmp_path / "run", offload_blocks=1)
    with pytest.raises(ValueError, match=r"and run\.compile=True"):
        with_run(more, compile=True)


class Block(nn.Module):
    """Frozen weights that autograd keeps, and a trained one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8).requires_grad_(False)
        self.norm = nn.LayerNorm(8).requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.linear(x).tanh()) * self.scale


def gradients(blocks: list[nn.Module], x: torch.Tensor) -> list[torch.Tensor]:
    for block in blocks:
        x: Any = checkpoint(block, x, use_reentrant=False)
    x.square().sum().backward()
    found = [parameter.grad for block in blocks for parameter in block.parameters()]
    return [grad for grad in found if grad is not None]


def test_what_waits_is_never_computed_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waiting weights have the other sign here, which copying gives back: a block that used
    them as they wait would show it. At most two blocks' copies are there at once, and each block is
    copied once in the forward and once in the backward."""
    torch.manual_seed(0)
    blocks: list[nn.Module] = [Block() for _ in range(4)]
    x = torch.randn(3, 8, requires_grad=True)
    expected = [grad.clone() for grad in gradients(blocks, x)]
    for block in blocks:
        block.zero_grad()
    offloaded = OffloadedBlocks(blocks)
    for weights in offloaded.waiting:
        for weight in weights:
            weight.neg_()
    copied: list[int] = []
    own = offloaded._copy

    def copy(number: int, device: torch.device) -> Any:
        copied.append(number)
        made = own(number, device)
        for weight in made.weights:
            weight.neg_()
        there = [
            bool(place.module.get_parameter(place.name).numel())
            for places in offloaded.places
            for place in places[:1]
        ]
        assert sum(there) <= 1
        assert len(offloaded._copied) <= 1
        return made

    monkeypatch.setattr(offloaded, "_copy", copy)
    found = gradients(blocks, x.detach())
    assert len(found) == len(blocks)
    assert all(map(torch.equal, found, expected))
    assert copied == [0, 1, 2, 3, 3, 2, 1, 0]


def test_a_block_that_fails_leaves_none_behind() -> None:
    blocks: list[nn.Module] = [Block()]
    offloaded = OffloadedBlocks(blocks)
    with pytest.raises(RuntimeError, match="shape"):
        blocks[0](torch.ones(3, 5))
    assert not blocks[0].get_parameter("linear.weight").numel()
    assert blocks[0](torch.ones(3, 8)).shape == (3, 8)
    assert offloaded.waiting[0][0].shape == (8, 8)
