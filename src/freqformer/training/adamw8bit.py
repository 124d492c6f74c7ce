"""AdamW with moments of eight bits in place of 32.

Moments are kept in blocks of 256 as the block's largest value and one byte for each other, as in
Dettmers et al., "8-bit Optimizers via Block-wise Quantization", arXiv 2110.02861. The levels of a
byte lie evenly on a logarithmic scale. A step changes a moment by less than the next level is away,
so values are rounded up or down by chance, in proportion: on average nothing is lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

BLOCK = 256
LEAST_QUANTIZED = 4096
"""Values of a parameter below which its moments stay whole."""
SCALE = "_scale"
"""Ending of the name of a moment's largest values by block."""
SIGNED_DECADES, UNSIGNED_DECADES = 5, 7
NEGATIVE = 128
"""Added to the byte of a negative value."""


class AdamW8bit(torch.optim.Optimizer):
    """As `torch.optim.AdamW`, with moments of large parameters in eight bits.

    Args:
        params: parameters or groups of them, as any optimizer of torch takes.
        lr: learning rate.
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: of the parameters.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Do one step. Chance comes from torch's own generator of the parameters' device."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    _move(parameter, self.state[parameter], group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As every optimizer's; torch would make numbers of the parameters' dtype of the bytes."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            for name in ("exp_avg", "exp_avg_sq"):
                if name + SCALE in state:
                    state[name] = state[name].to(torch.uint8)


def packed(x: Tensor, *, signed: bool) -> tuple[Tensor, Tensor]:
    """A tensor in eight bits a value, right on average.

    Args:
        x: float32 of any shape; not negative where it isn't `signed`.
        signed: whether a bit is the sign.

    Returns: uint8 of x's shape, and the largest value of every block, float32.
    """
    blocks = _blocks(x.abs())
    scale = blocks.amax(1)
    share = blocks / scale.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    levels = _levels(signed, x.device)
    above = torch.searchsorted(levels, share.contiguous()).clamp(1, len(levels) - 1)
    low = levels[above - 1]
    chance = (share - low) / (levels[above] - low)
    code = above - 1 + (torch.rand_like(share) < chance)
    code = code.flatten()[: x.numel()].view(x.shape)
    if signed:
        code = code + NEGATIVE * (x < 0)
    return code.to(torch.uint8), scale


def unpacked(code: Tensor, scale: Tensor, *, signed: bool) -> Tensor:
    """What `packed` made, float32 of the code's shape. Without sign no value is 0 in a block that
    isn't: steps are divided by its root, which would be too small."""
    place = code.int()
    levels = _levels(signed, code.device)
    size = levels[place % NEGATIVE if signed else place]
    whole = (_blocks(size) * scale[:, None]).flatten()[: code.numel()].view(code.shape)
    return torch.where(place >= NEGATIVE, -whole, whole) if signed else whole


@lru_cache(maxsize=8)
def _levels(signed: bool, device: torch.device) -> Tensor:
    """Shares of a block's largest value, rising: 128 from 0 on where a bit is the sign, else
    256."""
    if not signed:
        all_above = torch.logspace(-UNSIGNED_DECADES, 0, 2 * NEGATIVE, dtype=torch.float64)
        return all_above.float().to(device)
    above = torch.logspace(-SIGNED_DECADES, 0, NEGATIVE - 1, dtype=torch.float64)
    return torch.cat([torch.zeros(1), above.float()]).to(device)


def _blocks(x: Tensor) -> Tensor:
    """(blocks, BLOCK), zeros behind the values."""
    flat = x.reshape(-1)
    return torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)


def _move(parameter: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    """One step of one parameter."""
    beta, beta_sq = group["betas"]
    step = state.setdefault("step", torch.zeros(()))
    step += 1
    grad = parameter.grad.float()  # type: ignore[union-attr]
    first = _moment(parameter, state, "exp_avg", signed=True).lerp_(grad, 1 - beta)
    second = _moment(parameter, state, "exp_avg_sq", signed=False)
    second.mul_(beta_sq).addcmul_(grad, grad, value=1 - beta_sq)
    done = float(step)
    root = second.sqrt().div_(math.sqrt(1 - beta_sq**done)).add_(group["eps"])
    parameter.mul_(1 - group["lr"] * group["weight_decay"])
    parameter.addcdiv_(first, root, value=-group["lr"] / (1 - beta**done))
    _keep(state, "exp_avg", first, signed=True)
    _keep(state, "exp_avg_sq", second, signed=False)


def _moment(parameter: Tensor, state: dict[str, Any], name: str, *, signed: bool) -> Tensor:
    if name not in state:
        return torch.zeros_like(parameter, dtype=torch.float32)
    if name + SCALE not in state:
        return state[name]
    return unpacked(state[name], state[name + SCALE], signed=signed)


def _keep(state: dict[str, Any], name: str, moment: Tensor, *, signed: bool) -> None:
    if moment.numel() < LEAST_QUANTIZED:
        state[name] = moment
    else:
        state[name], state[name + SCALE] = packed(moment, signed=signed)
