"""Frozen routing: the band of every head by timestep, made from what a router chose, kept as
safetensors + JSON.

Shape legend: S samples, T timestep buckets, L layers, H heads. Timesteps are in [0, 1], and 1 is
the most noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from freqformer._files import (
    FileError,
    check_seal,
    read_bytes,
    read_json,
    sealed,
    write_bytes,
    write_json,
)
from freqformer._validate import check_whole
from freqformer.config import Band, FreqFormerConfig
from freqformer.routing.allocation import allocate
from freqformer.routing.network import NUM_BANDS
from freqformer.routing.origin import Origin, check_origin, origin_of, parse_origin

FORMAT = "freqformer-routing-table-1"
TENSORS_NAME, RECORD_NAME = "routing_table.safetensors", "routing_table.json"
TENSORS_BYTES = 1 << 30
"""Largest file of tensors that is read."""
NEEDED, OPTIONAL = {"format", "sha256", "config"}, {"origin", "seal", "tiles"}
"""Fields of the record; tables of earlier versions lack the optional ones."""


def timestep_bucket(timestep: Tensor, num_buckets: int) -> Tensor:
    """The bucket of every timestep, equal shares of [0, 1]: (B,) -> int64 (B,). Nothing waits for
    the GPU."""
    return (timestep.double() * num_buckets).long().clamp(0, num_buckets - 1)


def bands_at(bands: Tensor, timestep: Tensor) -> Tensor:
    """The bands of every timestep's bucket: (T, H) and (B,) -> (B, H)."""
    return bands[timestep_bucket(timestep, len(bands))]


@dataclass(frozen=True)
class RoutingTable:
    """A band for every timestep bucket, layer and head, in place of a running router.

    All heads of one layer and bucket share one `mid_tiles`: a call has one plan, and a plan has one
    list length. Where the buckets of a layer differ in it, the layer reads its timesteps on the
    host to pick the plan; where they agree, as `freeze` makes them, nothing waits for the GPU.

    Raises ValueError for tensors of other shapes or values, or a config that pins no tile.
    """

    bands: Tensor
    """`Band`, DENSE included: int64 (T, L, H)."""
    mid_tiles: Tensor
    """Tiles per query tile of MID heads with the top-k pattern, 0 for every tile: int64 (T, L,
    H)."""
    config: FreqFormerConfig
    """The bands' definition, its tile pinned, so that the table means the same at every video
    size. What no plan depends on is left out of it, see `FreqFormerConfig.for_plan`."""
    origin: Origin | None = None
    """What marks the model that it was made from; None fits any model of its shape."""
    tiles: int | None = None
    """Of how many tiles of a video `mid_tiles` were chosen: where a video of another size has more
    or fewer, the plug-in keeps the share. None keeps the numbers, as this library's models do."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", self.config.for_plan())
        if self.config.tile is None:
            raise ValueError(
                "config.tile is None; a table needs it pinned, for its bands to mean the same at "
                "every size: use "
                "dataclasses.replace(config, tile=tile_layout(grid).tile)"
            )
        for name, values, low, high in (
            ("bands", self.bands, 0, Band.DENSE),
            ("mid_tiles", self.mid_tiles, 0, 1 << 31),
        ):
            shaped = values.ndim == 3 and values.numel() > 0 and values.shape == self.bands.shape
            if (
                not shaped
                or values.dtype != torch.int64
                or bool(((values < low) | (values > high)).any())
            ):
                raise ValueError(
                    f"{name} is {values.dtype} {tuple(values.shape)}; int64 (buckets, layers, "
                    f"heads), {low} to {high}, the "
                    "same shape for bands and mid_tiles is allowed: make tables with "
                    "RoutingTable.freeze"
                )
        if self.tiles is not None:
            check_whole("tiles", self.tiles, 1)
        if bool((self.mid_tiles != self.mid_tiles[..., :1]).any()):
            raise ValueError(
                "mid_tiles differs between heads of one layer and bucket; one value for all of "
                "them is allowed: give every "
                "head the largest"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(timestep buckets, layers, heads)."""
        buckets, layers, heads = self.bands.shape
        return (buckets, layers, heads)

    @property
    def shares(self) -> dict[str, float]:
        """Share of the heads in each band, every bucket weighing the same: low, mid, high and
        dense."""
        counts = self.bands.flatten().bincount(minlength=len(Band)).double()
        return {
            band.name.lower(): share
            for band, share in zip(Band, (counts / counts.sum()).tolist(), strict=True)
        }

    @classmethod
    def freeze(
        cls,
        timestep: Tensor,
        observed: Tensor,
        config: FreqFormerConfig,
        *,
        num_buckets: int = 10,
        costs: Sequence[float] | None = None,
        budget: float | None = None,
        layers: Sequence[nn.Module] | None = None,
    ) -> RoutingTable:
        """The table that agrees best with what routers did.

        Args:
            timestep: (S,) in [0, 1].
            observed: what was seen at them: float logits (S, L, H, 3), whose mean over a bucket
                decides; or integer allocations (S, L, H), of which the most frequent band does.
            config: of the layers, its tile pinned.
            num_buckets: equal shares of [0, 1]. A bucket with no sample takes the nearest one that
                has some.
            costs, budget: hold every bucket and layer to a FLOP budget, as in `allocate`; logits
                only. Costs of a layer, its LOW branch included, are `FreqAttention.band_costs`.
            layers: the model's attention layers, `model.attentions`; another model then refuses the
                table.

        Raises:
            ValueError: for shapes or values that do not fit, naming the argument.
        """
        scores = _scores(timestep, observed, num_buckets)
        if budget is not None and scores.shape[-1] != NUM_BANDS:
            raise ValueError(
                f"budget is {budget!r} with observed allocations; it needs logits: pass the "
                "routers' logits"
            )
        bucket = timestep_bucket(timestep, num_buckets)
        counts = bucket.bincount(minlength=num_buckets)
        seen = counts.nonzero().squeeze(1)
        place = torch.arange(num_buckets, device=seen.device)
        nearest = seen[(place[:, None] - seen).abs().argmin(1)]
        sums = scores.new_zeros(num_buckets, *scores.shape[1:]).index_add(0, bucket, scores)
        mean = sums[nearest] / counts[nearest][:, None, None, None]
        # Every layer and bucket is one row to `allocate`, so each keeps to the budget.
        bands = (
            mean.argmax(-1)
            if budget is None
            else allocate(mean.flatten(0, 1), costs=costs, budget=budget)
        )
        bands = bands.reshape(mean.shape[:-1]).cpu()
        origin = None if layers is None else origin_of(layers)
        return cls(bands, torch.full_like(bands, config.mid_tiles or 0), config, origin)

    def check_layers(self, layers: Sequence[nn.Module]) -> None:
        """Raise ValueError where these attention layers are of another model than the table was
        made from.

        Args:
            layers: of our own transformer or another library's, in order. What can't be compared
                passes: a table without mark, or weights that are quantised, sharded or on `meta`.
        """
        check_origin(self.origin, layers)

    def for_layer(
        self, layer: int, num_heads: int, config: FreqFormerConfig
    ) -> tuple[Tensor, list[FreqFormerConfig]]:
        """What one layer of a model needs: its bands (T, H), and the config of every bucket.

        Args:
            layer: from 0.
            num_heads, config: of that layer. `mid_tiles`, and the tile where it is not pinned, come
                from the table; `deterministic` is the layer's.

        Raises:
            ValueError: for other heads or layers than the table's, or bands that mean something
                else.
        """
        _, layers, heads = self.shape
        if heads != num_heads or not 0 <= layer < layers:
            raise ValueError(
                f"table has {layers} layers of {heads} heads; layer {layer} of {num_heads} heads "
                "is asked for: freeze a "
                "table from this model"
            )
        own = replace(config, mid_tiles=self.config.mid_tiles, tile=config.tile or self.config.tile)
        # How it is computed and routed is the layer's, and no part of what bands mean.
        if own.for_plan() != self.config:
            raise ValueError(
                f"table.config is {self.config}; the layer has {config.for_plan()}, and only "
                "mid_tiles, deterministic and an unpinned tile may differ: freeze a table from "
                "this model"
            )
        kept = self.mid_tiles[:, layer, 0].tolist()
        # One record for equal buckets: there are hundreds, and each would be checked anew.
        by_count = {tiles: replace(own, mid_tiles=tiles or None) for tiles in set(kept)}
        return self.bands[:, layer], [by_count[tiles] for tiles in kept]

    def save(self, folder: str | Path) -> None:
        """Write `routing_table.safetensors` and `routing_table.json` into a folder, which is made
        if missing.

        Each file is whole or absent. The JSON file comes last and holds the checksum of the other,
        and one of itself.

        Raises:
            ValueError: where they can't be written.
        """
        from safetensors.torch import save

        folder = Path(folder)
        tensors = save({"bands": self.bands.contiguous(), "mid_tiles": self.mid_tiles.contiguous()})
        record = {
            "format": FORMAT,
            "sha256": hashlib.sha256(tensors).hexdigest(),
            "config": self.config.to_dict(),
            "origin": self.origin,
            "tiles": self.tiles,
        }
        write_bytes(folder / TENSORS_NAME, tensors)
        write_json(folder / RECORD_NAME, sealed(record))

    @classmethod
    def load(cls, folder: str | Path) -> RoutingTable:
        """Read what `save` wrote.

        Raises:
            ValueError: for a missing, damaged or foreign file, naming it and the remedy.
        """
        from safetensors.torch import load

        record_path, tensors_path = Path(folder) / RECORD_NAME, Path(folder) / TENSORS_NAME
        record = _read_record(record_path)
        tensors = read_bytes(tensors_path, remedy=_REMEDY, most_bytes=TENSORS_BYTES)
        if hashlib.sha256(tensors).hexdigest() != record["sha256"]:
            raise FileError(
                f"{tensors_path} is not the file that {RECORD_NAME} was written with: save the "
                "table again"
            )
        try:
            values = load(tensors)
            config, origin = (
                FreqFormerConfig.from_dict(record["config"]),
                parse_origin(record.get("origin")),
            )
            return cls(values["bands"], values["mid_tiles"], config, origin, record.get("tiles"))
        except Exception as error:  # what safetensors and torch raise for damage is of many types
            raise FileError(
                f"{folder} holds no valid routing table ({error}): save the table again"
            ) from error


@runtime_checkable
class SampleGates(Protocol):
    """Gates that can be had for some samples, see `BranchGates`."""

    def of(self, samples: list[int]) -> SampleGates: ...


def attend_by_bucket(
    attend: Callable[..., Tensor],
    qkv: tuple[Tensor, ...],
    allocation: Tensor,
    configs: Sequence[FreqFormerConfig],
    timestep: Tensor,
    low_branch: SampleGates | None = None,
) -> Tensor:
    """Attention whose config is that of every sample's timestep bucket.

    Args:
        attend: `frequency_attention` with all but tensors, `allocation` and `config`.
        qkv: query, key and value (B, N, H, D), and what else `attend` takes by sample behind
            them.
        allocation: bands (B, H).
        configs: of every bucket. Where they differ, timesteps are read on the host, and samples
            that share one run together.
        timestep: (B,) in [0, 1].
        low_branch: gates of a LOW branch, None for none.
    """
    if _alike(configs):
        return attend(*qkv, allocation=allocation, config=configs[0], low_branch=low_branch)
    # On the host before the buckets are worked out: each operation would be a launch for a number.
    buckets = timestep_bucket(timestep.cpu(), len(configs)).tolist()
    own = [configs[bucket] for bucket in buckets]
    if _alike(own):
        # All samples of a sampler's step: nothing is picked apart and put together again.
        return attend(*qkv, allocation=allocation, config=own[0], low_branch=low_branch)
    outputs, order = [], []
    for config in dict.fromkeys(own):
        rows = [row for row, other in enumerate(own) if other == config]
        outputs.append(
            attend(
                *(x[rows] for x in qkv),
                allocation=allocation[rows],
                config=config,
                low_branch=None if low_branch is None else low_branch.of(rows),
            )
        )
        order += rows
    return torch.cat(outputs)[torch.tensor(order).argsort().to(allocation.device)]


def _alike(configs: Sequence[FreqFormerConfig]) -> bool:
    """Whether all are equal. Those of a table are one object then, which is told apart faster than
    hundreds of records are hashed."""
    first = configs[0]
    return all(config is first or config == first for config in configs)


def _scores(timestep: Tensor, observed: Tensor, num_buckets: int) -> Tensor:
    """What the choice is made by: float64 (S, L, H, 3), or (S, L, H, 4) for counted allocations."""
    if num_buckets < 1:
        raise ValueError(f"num_buckets is {num_buckets}; whole numbers from 1 up are allowed")
    rank = 4 if observed.is_floating_point() else 3
    samples = observed.shape[0] if observed.ndim == rank else -1
    if (
        samples < 1
        or tuple(timestep.shape) != (samples,)
        or (rank == 4 and observed.shape[-1] != NUM_BANDS)
    ):
        raise ValueError(
            f"observed is {observed.dtype} {tuple(observed.shape)} and timestep "
            f"{tuple(timestep.shape)}; float (samples, "
            "layers, heads, 3) or whole numbers (samples, layers, heads), and (samples,) are "
            "allowed: stack the "
            "model's routing_logits or allocations over layers, behind the batch"
        )
    if not bool(((timestep >= 0) & (timestep <= 1)).all()) or not bool(observed.isfinite().all()):
        raise ValueError(
            "timestep or observed is out of range; timesteps from 0 to 1 and finite logits are "
            "allowed"
        )
    if rank == 4:
        return observed.double()
    if bool(((observed < 0) | (observed > Band.DENSE)).any()):
        raise ValueError(
            "observed holds bands out of range; 0 to 3 are allowed: LOW, MID, HIGH, DENSE"
        )
    return functional.one_hot(observed.long(), len(Band)).double()


_REMEDY = "pass the folder that RoutingTable.save wrote, or save the table again"


def _read_record(path: Path) -> dict[str, Any]:
    record = read_json(path, remedy=_REMEDY)
    if record.get("format") != FORMAT:
        raise FileError(
            f"{path} is no routing table of format {FORMAT!r}: freeze and save the table with this "
            "version"
        )
    missing, unknown = sorted(NEEDED - set(record)), sorted(set(record) - NEEDED - OPTIONAL)
    if missing or unknown:
        raise FileError(f"{path} lacks {missing} or has unknown {unknown}: save the table again")
    if "seal" in record:
        check_seal(record, path, remedy=_REMEDY)
    return record
