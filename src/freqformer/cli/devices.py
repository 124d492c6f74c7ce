"""The device that a command computes on."""

from __future__ import annotations

import torch


def chosen_device(named: str | None) -> torch.device:
    """The device of `--device`: the one named, or a GPU where there is one, else the CPU.

    Raises:
        ValueError: for another name, or a GPU that this machine lacks.
    """
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if named is None:
        return torch.device("cuda" if found else "cpu")
    allowed = ["cpu", *(["cuda"] if found else []), *(f"cuda:{index}" for index in range(found))]
    if named not in allowed:
        raise ValueError(
            f"--device is {named[:80]!r}; {', '.join(allowed)} "
            f"{'is' if len(allowed) == 1 else 'are'} allowed on this machine: choose one, or leave "
            "it out"
        )
    return torch.device(named)


def device_name(device: torch.device) -> str:
    """What a device is called in messages."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({device})"
    return f"the CPU, {torch.get_num_threads()} threads"
