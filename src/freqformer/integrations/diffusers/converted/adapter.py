"""An adapter: what conversion makes of a dense model, as a folder of safetensors and JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from freqformer._files import (
    FileError,
    check_manifest,
    check_seal,
    read_json,
    sealed,
    write_json,
    writing_folder,
)
from freqformer._validate import check_choice, check_whole
from freqformer.integrations.diffusers.converted.learned import Change, LearnedLayers
from freqformer.integrations.diffusers.converted.windows import WindowSettings
from freqformer.routing.origin import Origin, check_origin, origin_of, parse_origin

FORMAT = "freqformer-adapter-1"
KIND = "adapter"
RECORD_FILE = "adapter.json"
ATTENTION_FILE = "attention.safetensors"
"""Gates and routers."""
CHANGE_FILES: dict[Change, str] = {"lora": "lora.safetensors", "full": "projections.safetensors"}
"""What projections have learned; LoRA by the names that diffusers gives it."""
LORA_PREFIX = "transformer."
_REMEDY = "give the folder `adapter` that `freqformer convert` wrote, or convert the model again"


@dataclass(frozen=True)
class AdapterSettings:
    """What an adapter's layers do, and how their projections change.

    Args:
        windows: see `WindowSettings`.
        change: `lora` or `full`.
        rank: of `lora`; 0 for `full`.

    Raises:
        ValueError: for values out of range, naming the field.
    """

    windows: WindowSettings = field(default_factory=WindowSettings)
    change: Change = "lora"
    rank: int = 32

    def __post_init__(self) -> None:
        check_choice("change", self.change, get_args(Change))
        if self.change == "full":
            object.__setattr__(self, "rank", 0)
        else:
            check_whole("rank", self.rank, 1)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> AdapterSettings:
        """The record that `asdict` gave these values of."""
        return cls(**{**values, "windows": WindowSettings(**values["windows"])})


@dataclass(frozen=True, eq=False)
class Adapter:
    """What a transformer of diffusers has learned by conversion, and for which model."""

    settings: AdapterSettings
    transformer: str
    """The class's name."""
    layers: tuple[str, ...]
    """Names of the converted attention layers."""
    tensors: Mapping[str, Tensor]
    """The state of the `LearnedLayers`."""
    origin: Origin | None = None
    """Of the dense model, see `origin_of`."""
    history: Mapping[str, Any] | None = None
    """How it came about, JSON-able."""

    @classmethod
    def of(
        cls,
        name: str,
        layers: Mapping[str, nn.Module],
        learned: LearnedLayers,
        settings: AdapterSettings,
        history: Mapping[str, Any] | None = None,
        origin: Origin | None = None,
    ) -> Adapter:
        """The adapter of a transformer's layers.

        Args:
            name: of the transformer's class.
            layers: the model's own, by name.
            learned: what they have learned.
            settings: see `AdapterSettings`.
            history: see above.
            origin: see above; None reads it from the layers.
        """
        tensors = {key: x.detach().cpu() for key, x in learned.state_dict().items()}
        if origin is None:
            origin = origin_of(list(layers.values()))
        return cls(settings, name, tuple(layers), tensors, origin, history)

    def for_layers(self, name: str, layers: Mapping[str, Any]) -> LearnedLayers:
        """What the layers of a transformer are to have learned.

        Args:
            name: of the transformer's class.
            layers: the model's own, by name.

        Raises:
            ValueError: for another model than the one that was converted.
        """
        if name != self.transformer or tuple(layers) != self.layers:
            raise ValueError(
                f"adapter was made for a {self.transformer} of {len(self.layers)} attention layers,"
                f" and this is a {name} of {len(layers)}; the model that was converted is allowed: "
                "load its pipeline, or convert this model"
            )
        check_origin(self.origin, list(layers.values()), what="adapter")
        learned = LearnedLayers(layers, self.settings.change, self.settings.rank)
        try:
            learned.load_state_dict(self.tensors)
        except RuntimeError as error:
            raise ValueError(
                f"adapter doesn't fit the layers of this {name} ({error}); the model that was "
                "converted is allowed: load its pipeline, or convert this model"
            ) from error
        return learned

    def save(self, folder: str | Path) -> None:
        """Write it as a folder, whole or not at all; an earlier adapter is replaced.

        Raises:
            FileError: where it can't be written, or the folder holds anything else.
        """
        record = {
            "format": FORMAT,
            "settings": asdict(self.settings),
            "transformer": self.transformer,
            "layers": list(self.layers),
            "origin": self.origin,
            "history": None if self.history is None else dict(self.history),
        }
        attention = {name: x for name, x in self.tensors.items() if _is_of_branch(name)}
        changes = {name: x for name, x in self.tensors.items() if not _is_of_branch(name)}
        prefix = self._prefix
        with writing_folder(Path(folder), kind=KIND) as new:
            save_file(_contiguous(attention), new / ATTENTION_FILE)
            save_file(
                _contiguous({prefix + name: x for name, x in changes.items()}),
                new / CHANGE_FILES[self.settings.change],
            )
            write_json(new / RECORD_FILE, sealed(record))

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Adapter:
        """Read what `save` wrote.

        Raises:
            FileError: for another folder, or files that are missing, damaged or of a later
                version, naming them and the remedy.
        """
        place = Path(folder)
        if not (place / RECORD_FILE).is_file():
            raise FileError(f"{place} {_what(place)}; {_REMEDY}")
        check_manifest(place, remedy=_REMEDY)
        record = read_json(place / RECORD_FILE, remedy=_REMEDY)
        if record.get("format") != FORMAT:
            raise FileError(
                f"{place / RECORD_FILE} has format {record.get('format')!r}; {FORMAT!r} is allowed:"
                " read it with the version that wrote it"
            )
        check_seal(record, place / RECORD_FILE, remedy=_REMEDY)
        try:
            settings = AdapterSettings.from_dict(record["settings"])
            made = cls(
                settings,
                record["transformer"],
                tuple(record["layers"]),
                {},
                parse_origin(record["origin"]),
                record["history"],
            )
            tensors = load_file(place / ATTENTION_FILE)
            changes = load_file(place / CHANGE_FILES[settings.change])
        except Exception as error:  # what safetensors and torch raise for damage is of many types
            raise FileError(f"{place} holds no valid adapter ({error!r}); {_REMEDY}") from error
        tensors |= {name.removeprefix(made._prefix): x for name, x in changes.items()}
        return cls(settings, made.transformer, made.layers, tensors, made.origin, made.history)

    @property
    def _prefix(self) -> str:
        return LORA_PREFIX if self.settings.change == "lora" else ""


def _is_of_branch(name: str) -> bool:
    return ".gates." in name or ".router." in name


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.contiguous() for name, x in tensors.items()}


def _what(place: Path) -> str:
    """What a folder without an adapter is instead."""
    if not place.exists():
        return "does not exist"
    if not place.is_dir():
        return "is a file"
    if (place / KIND / RECORD_FILE).is_file():
        return f"is the output of a conversion, whose adapter is {place / KIND}"
    if (place / "model_index.json").is_file():
        return "is a pipeline and no adapter"
    if (place / "routing_table.json").is_file():
        return "is a routing table and no adapter, pass RoutingTable.load(folder) as table"
    if (place / "index.json").is_file():
        return "is a cache and no adapter"
    return "holds no adapter"
