"""The bands of a layer's heads: in its memory, in its state dict, and through every way of making
and moving a module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

ALLOCATION = "allocation"
SUMMARIES = ("summary_queries", "summary_offsets")
"""Parameters that older versions also made, and saved, where no summaries are."""


class HeadBands(nn.Module):
    """A module that knows the band of each of its heads.

    `bands` holds them as plain numbers, which survive the meta device and `to_empty`; the buffer
    `allocation` has the same numbers where the parameters are, and puts them into the state dict. A
    table that replaces them isn't part of it.
    """

    forgets_summaries = True
    """Whether a state of an older version may hold summaries that nothing used."""
    bands: tuple[int, ...]
    present: tuple[int, ...]
    """Which bands there are among them, each once."""
    allocation: Tensor
    """int64 (H,)."""
    table_bands: Tensor | None
    """Bands of a routing table by timestep bucket, int64 (T, H); None without one."""

    def _set_bands(self, bands: Sequence[int], *, fixed: bool) -> None:
        """Take bands; `fixed` says that they act for good, and aren't just where a router
        starts."""
        self.bands, self._fixed = tuple(bands), fixed
        self.present = tuple(sorted(set(self.bands)))
        self.register_buffer(ALLOCATION, torch.tensor(self.bands))
        self._table: Tensor | None = None
        self.table_bands = None

    def _set_table(self, bands: Tensor | None) -> None:
        # Not a buffer: hooks that take buffers elsewhere would lose it, since no state dict holds
        # it.
        self._table = None if bands is None else bands.cpu()
        self.table_bands = self._table
        rows = set() if bands is None else {tuple(row) for row in bands.tolist()}
        # Asked at every call, and the table may have hundreds of buckets.
        self._table_present = tuple(sorted({band for row in rows for band in row}))
        self._table_alike = len(rows) == 1
        self._restore()

    def _table_on(self, device: torch.device) -> Tensor | None:
        """The table's bands where a call is."""
        if self._table is None or self.table_bands is None or self.table_bands.device == device:
            return self.table_bands
        return self._table.to(device)

    def _restore(self) -> None:
        """Write the numbers again: `to_empty` leaves garbage in buffers."""
        if self._table is not None:
            self.table_bands = self._table.to(self.allocation.device)
        if self.allocation.device.type == "meta":
            return
        with torch.no_grad():
            self.allocation.copy_(torch.tensor(self.bands, device="cpu"))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self._restore()
        return self

    def check_bands(self, found: Tensor, place: str = "the state dict") -> None:
        """Raise ValueError where the bands that `place` holds are others than this layer's, and
        these act."""
        if (
            found.device.type == "meta"
            or type(found) not in (Tensor, nn.Parameter)
            or not self._fixed
        ):
            return
        bands = found.tolist()
        if bands != list(self.bands):
            raise ValueError(
                f"{place} is of a layer with allocation {bands}, and this one has "
                f"{list(self.bands)}, in which "
                "those weights mean something else: make the layer with that allocation, or leave "
                "'allocation' out "
                "of the state dict to take the weights alone"
            )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *rest: Any, **named: Any
    ) -> None:
        name = prefix + ALLOCATION
        found = state_dict.get(name)
        if found is not None:
            self.check_bands(found)
        else:
            # Older versions saved no bands, but summaries that nothing used.
            for unused in SUMMARIES:
                if self.forgets_summaries and getattr(self, unused, None) is None:
                    state_dict.pop(prefix + unused, None)
            found = state_dict.get(f"{prefix}to_q.weight", self.allocation)
        state_dict[name] = torch.tensor(self.bands, device=found.device)
        super()._load_from_state_dict(state_dict, prefix, *rest, **named)


def without_unused(
    groups: Mapping[str, Mapping[str, Tensor]], model: nn.Module
) -> dict[str, Mapping[str, Tensor]]:
    """Groups of a run's tensors by parameter name, as this version of the model has them.

    Where an older version wrote them, its group `model` gets the bands of heads, and all lose
    summaries that nothing used.
    """
    weights, state = groups.get("model", {}), model.state_dict()
    bands = {name: x for name, x in state.items() if name.rpartition(".")[2] == ALLOCATION}
    if not weights or not bands or bands.keys() & weights.keys():
        return dict(groups)

    def used(path: str) -> bool:
        named = [part for part in path.replace("/", ".").split(".") if part in SUMMARIES]
        return not named or path[: path.index(named[0])] + named[0] in state

    kept: dict[str, Mapping[str, Tensor]] = {}
    for group, tensors in groups.items():
        kept[group] = {path: x for path, x in tensors.items() if used(path)} | (
            bands if group == "model" else {}
        )
    return kept
