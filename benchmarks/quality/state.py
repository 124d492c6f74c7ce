"""Files in which an unfinished run waits to go on, and weights of finished runs that are measured
later: safetensors, whole or absent.

A run that goes on takes the same bits as one that never stopped: weights, moments of the optimizer,
losses so far, the number of the step that is next, from which clips, noise and timesteps follow,
and the random number generators that routers draw from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from freqformer._files import FileError, writing_file

STOPPED, KEPT = "stopped", "weights"
"""Folders within that of the state."""
RECORD = "run"
"""Where a file's metadata hold what was written of its run."""
REMEDY = "remove it, and the run begins anew"


class Saved(NamedTuple):
    """What a file holds."""

    tensors: dict[str, Tensor]
    record: dict[str, Any]


def write(path: Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Write tensors, and what is said of them.

    Args:
        path: the file; its folder is made where missing.
        tensors: by name, on any device.
        record: JSON-able.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    copies = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    with writing_file(path) as place:
        save_file(copies, place, metadata={RECORD: json.dumps(record)})


def read(path: Path, expected: dict[str, Any]) -> Saved:
    """Read what `write` wrote, on the CPU.

    Args:
        path: the file.
        expected: entries that its record must have.

    Raises:
        FileError: for a damaged file, or one of another run.
    """
    try:
        with safe_open(path, "pt") as file:
            record = json.loads((file.metadata() or {})[RECORD])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # what safetensors raises for damage is of many types
        raise FileError(f"{path} can't be read ({error}): {REMEDY}") from error
    found = {name: record.get(name) for name in expected}
    if found != expected:
        raise FileError(f"{path} is of a run with {found}, not {expected}: {REMEDY}")
    return Saved(tensors, record)


def training_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, losses: Tensor
) -> dict[str, Tensor]:
    """All tensors that training goes on from, by name."""
    tensors = {"losses": losses, "random cpu": torch.get_rng_state()}
    if losses.device.type == "cuda":
        tensors["random cuda"] = torch.cuda.get_rng_state(losses.device)
    for name, parameter in model.named_parameters():
        tensors[f"weight {name}"] = parameter
        for moment, x in optimizer.state.get(parameter, {}).items():
            tensors[f"{moment} {name}"] = x
    return tensors


@torch.no_grad()
def restore_training(
    tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer, losses: Tensor
) -> None:
    """Put tensors of `training_tensors` back, in place where there are some: a CUDA graph reads
    from these places.

    Raises:
        KeyError: where one is missing.
    """
    for name, parameter in model.named_parameters():
        parameter.copy_(tensors[f"weight {name}"])
        place = optimizer.state[parameter]
        for moment in ("step", "exp_avg", "exp_avg_sq"):
            if f"{moment} {name}" not in tensors:
                continue
            saved = tensors[f"{moment} {name}"]
            if moment in place:
                place[moment].copy_(saved)
            else:
                place[moment] = saved.clone() if moment == "step" else saved.to(parameter.device)
        if not place:
            del optimizer.state[parameter]
    losses.copy_(tensors["losses"])
    torch.set_rng_state(tensors["random cpu"])
    if losses.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random cuda"], losses.device)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters by name."""
    return dict(model.named_parameters())


@torch.no_grad()
def load_weights(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put parameters back in place.

    Raises:
        KeyError: where one is missing.
    """
    for name, parameter in model.named_parameters():
        parameter.copy_(tensors[name])
