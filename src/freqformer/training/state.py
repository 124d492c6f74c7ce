"""What a run consists of, as tensors by name: weights, their average, and the optimizer's
moments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from freqformer.attention.head_bands import without_unused
from freqformer.training.checkpoint import CheckpointError, TensorGroups

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel


def capture_run(
    model: nn.Module, ema: EMAModel, optimizer: torch.optim.Optimizer
) -> dict[str, Mapping[str, Tensor]]:
    """The tensors of a run in the groups `model`, `ema` and `optimizer`; nothing is copied."""
    names = [name for name, _ in model.named_parameters()]
    order = _names_in_order(model, optimizer)
    moments = {
        f"{order[index]}/{key}": tensor
        for index, entries in optimizer.state_dict()["state"].items()
        for key, tensor in entries.items()
    }
    average = dict(zip(names, ema.shadow_params, strict=True))
    return {"model": model.state_dict(), "ema": average, "optimizer": moments}


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
    order = _names_in_order(model, optimizer)
    average = dict(
        zip((name for name, _ in model.named_parameters()), ema.shadow_params, strict=True)
    )
    _check_alike("model", groups.get("model", {}), model.state_dict())
    _check_alike("ema", groups.get("ema", {}), average)
    index = {name: i for i, name in enumerate(order)}
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    state: dict[int, dict[str, Tensor]] = {}
    for path, tensor in groups.get("optimizer", {}).items():
        name, _, key = path.rpartition("/")
        if name not in index or tensor.shape not in (shapes[name], torch.Size()):
            raise CheckpointError(
                f"optimizer holds {path} {tuple(tensor.shape)}, which this model lacks; {_REMEDY}"
            )
        # A copy of its own: what safetensors maps from a file may lie at any address, and rounding
        # follows alignment.
        state.setdefault(index[name], {})[key] = tensor.clone()
    if len({frozenset(entries) for entries in state.values()}) > 1:
        raise CheckpointError(
            f"optimizer lacks some moments of parameters that it has others of; {_REMEDY}"
        )
    _check_finite(groups)
    model.load_state_dict(groups["model"])
    for name, shadow in average.items():
        shadow.copy_(groups["ema"][name])
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
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
