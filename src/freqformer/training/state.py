"""What a run consists of, as tensors by name: weights, their average, and the optimizer's
moments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from freqformer.attention.head_bands import without_unused
from freqformer.training.adamw8bit import BLOCK, SCALE
from freqformer.training.report import CheckpointError, TensorGroups
from freqformer.training.shard_files import described_shards, read_shards

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel


def capture_run(
    model: nn.Module, ema: EMAModel, optimizer: torch.optim.Optimizer
) -> dict[str, Mapping[str, Tensor]]:
    """The tensors of a run in the groups `model`, `ema` and `optimizer`; nothing is copied."""
    order = _names_in_order(model, optimizer)
    moments = {
        f"{order[index]}/{key}": tensor
        for index, entries in optimizer.state_dict()["state"].items()
        for key, tensor in entries.items()
    }
    return {"model": model.state_dict(), "ema": _average(model, ema), "optimizer": moments}


def restore_run(
    model: nn.Module, ema: EMAModel, optimizer: torch.optim.Optimizer, groups: TensorGroups
) -> None:
    """Put a run back to where `capture_run` found it, bit for bit.

    Args:
        model, ema, optimizer: built as those of the run were. `ema.optimization_step` is the
            caller's to set.
        groups: what `capture_run` gave.

    Raises:
        CheckpointError: where names, shapes or dtypes are not those of this model; nothing is
            changed then.
    """
    groups = without_unused(groups, model)
    average = _average(model, ema)
    _check_fits(model, average, groups)
    _check_finite(groups)
    parameters = dict(model.named_parameters())
    # A copy of its own: what safetensors maps from a file may lie at any address, and rounding
    # follows alignment.
    moments = {
        path: _placed_like(tensor, parameters[path.rpartition("/")[0]]).clone()
        for path, tensor in groups.get("optimizer", {}).items()
    }
    weights = model.state_dict()
    model.load_state_dict(
        {name: _placed_like(x, weights[name]) for name, x in groups["model"].items()}
    )
    for name, shadow in average.items():
        shadow.copy_(_placed_like(groups["ema"][name], shadow))
    _set_moments(model, optimizer, moments)


def restore_shards(
    model: nn.Module, ema: EMAModel, optimizer: torch.optim.Optimizer, path: Path
) -> None:
    """As `restore_run`, from a checkpoint of shards: each rank reads what it holds."""
    found = described_shards(path)
    average = _average(model, ema)
    _check_fits(model, average, found)
    parameters = dict(model.named_parameters())
    moments = {
        name: torch.zeros_like(parameters[name.rpartition("/")[0]].detach(), dtype=x.dtype)
        if x.ndim
        else torch.zeros((), dtype=x.dtype)
        for name, x in found.get("optimizer", {}).items()
    }
    read_shards(path, {"model": model.state_dict(), "ema": average, "optimizer": moments})
    _set_moments(model, optimizer, moments)


def _average(model: nn.Module, ema: EMAModel) -> dict[str, Tensor]:
    names = (name for name, _ in model.named_parameters())
    return dict(zip(names, ema.shadow_params, strict=True))


def _set_moments(
    model: nn.Module, optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor]
) -> None:
    """Give an optimizer its moments, by the names of parameters and their own."""
    index = {name: place for place, name in enumerate(_names_in_order(model, optimizer))}
    state: dict[int, dict[str, Tensor]] = {}
    for path, tensor in moments.items():
        name, _, key = path.rpartition("/")
        state.setdefault(index[name], {})[key] = tensor
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def _placed_like(whole: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, of which every rank has the same, as a DTensor where `like` is one."""
    if not isinstance(like, DTensor) or not whole.ndim:
        return whole
    here = whole.to(like.device)
    return distribute_tensor(here, like.device_mesh, like.placements, src_data_rank=None)


def _check_fits(model: nn.Module, average: Mapping[str, Tensor], groups: TensorGroups) -> None:
    """Raise CheckpointError for tensors that are not those of this model and its optimizer."""
    _check_alike("model", groups.get("model", {}), model.state_dict())
    _check_alike("ema", groups.get("ema", {}), average)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    kinds: dict[str, set[str]] = {}
    for path, tensor in groups.get("optimizer", {}).items():
        name, _, key = path.rpartition("/")
        if name in shapes and key.endswith(SCALE):
            # Of a moment in 8 bits, which parameters of few values have not.
            if tensor.shape == (-(-shapes[name].numel() // BLOCK),):
                continue
            name = ""
        if name not in shapes or tensor.shape not in (shapes[name], torch.Size()):
            raise CheckpointError(
                f"optimizer holds {path} {tuple(tensor.shape)}, which this model lacks; {_REMEDY}"
            )
        kinds.setdefault(name, set()).add(key)
    if len({frozenset(keys) for keys in kinds.values()}) > 1:
        raise CheckpointError(
            f"optimizer lacks some moments of parameters that it has others of; {_REMEDY}"
        )


_REMEDY = "resume with the model and optimizer settings that the run began with"


def _check_finite(groups: TensorGroups) -> None:
    """A check of values, for checkpoints of versions without checksums: training keeps to finite
    numbers."""
    for group, tensors in groups.items():
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise CheckpointError(
                    f"{group} holds values that are not finite in {name}: remove this checkpoint"
                )


def _names_in_order(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Parameter names in the order in which the optimizer numbers parameters."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def _check_alike(group: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    have = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in found.items()}
    want = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in expected.items()}
    wrong = sorted(name for name in have.keys() | want.keys() if have.get(name) != want.get(name))
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"{group} differs from this model in {len(wrong)} tensors; the first, {name}, is "
            f"{have.get(name, 'absent')} in "
            f"the checkpoint and {want.get(name, 'absent')} here: {_REMEDY}"
        )
