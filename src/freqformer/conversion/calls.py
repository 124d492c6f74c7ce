"""Calls of a transformer as its own pipeline makes them, kept in files: what a dense model is asked
where no cache can say it, as with several text encoders or with sound.

A folder of calls holds `calls.json` and one safetensors file per call, which is whole or absent.
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

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
from freqformer.integrations.diffusers.ulysses import class_name
from freqformer.training.seeding import derive_generator

FORMAT = "freqformer-calls-1"
CALLS_FILE = "calls.json"
MOST_BYTES = 1 << 34
LEFT_OUT = ("return_dict", "attention_kwargs")
"""Arguments that say nothing of what is asked."""
_REMEDY = "record them again, or choose another folder"


@dataclass(frozen=True)
class RecordedCall:
    """One call, as a folder lists it."""

    file: str
    crc32: int
    plain: dict[str, Any]
    """Arguments that are no tensors, JSON-able."""
    about: str
    """The prompt, for errors."""


@dataclass
class CallFolder:
    """The calls of a folder.

    Args:
        folder: that holds them.
        transformer: the class's name.
        videos: that were recorded.
        calls: of all of them.
    """

    folder: Path
    transformer: str
    videos: int = 0
    calls: list[RecordedCall] = field(default_factory=list)

    @classmethod
    def read(cls, folder: str | Path) -> CallFolder:
        """The calls of a folder.

        Raises:
            FileError: for a folder without calls, or one that is damaged.
        """
        path = Path(folder) / CALLS_FILE
        if not path.is_file():
            raise FileError(f"{folder} holds no recorded calls: it has no {CALLS_FILE}; {_REMEDY}")
        record = read_json(path, remedy=_REMEDY)
        if record.get("format") != FORMAT:
            raise FileError(
                f"{path} has format {record.get('format')!r}; {FORMAT!r} is allowed: read it with "
                "the version that wrote it"
            )
        check_seal(record, path, remedy=_REMEDY)
        try:
            calls = [RecordedCall(**values) for values in record["calls"]]
            made = cls(Path(folder), record["transformer"], record["videos"], calls)
        except (KeyError, TypeError) as error:
            raise FileError(f"{path} is damaged ({error!r}); {_REMEDY}") from error
        if outside := [call.file for call in calls if Path(call.file).name != call.file]:
            raise FileError(f"{path} names {outside[:3]}, which are no files of it; {_REMEDY}")
        return made

    def add_video(self, calls: list[dict[str, Any]], about: str) -> None:
        """Write the calls of one more video.

        Args:
            calls: arguments by name.
            about: the prompt.

        Raises:
            FileError: where they can't be written.
        """
        for place, given in enumerate(calls):
            name = f"call-{self.videos:05d}-{place:03d}.safetensors"
            tensors = {key: x.contiguous() for key, x in given.items() if isinstance(x, Tensor)}
            plain = {
                key: list(x) if isinstance(x, tuple) else x
                for key, x in given.items()
                if not isinstance(x, Tensor)
            }
            content = save(tensors)
            write_bytes(self.folder / name, content)
            self.calls.append(RecordedCall(name, zlib.crc32(content), plain, about))
        self.videos += 1
        self._write()

    def load(self, number: int) -> dict[str, Any]:
        """The arguments of a call, by name, tensors on the CPU.

        Raises:
            FileError: for a file that is missing or damaged.
        """
        call = self.calls[number]
        path = self.folder / call.file
        content = read_bytes(path, remedy=_REMEDY, most_bytes=MOST_BYTES)
        if zlib.crc32(content) != call.crc32:
            raise FileError(f"{path} is damaged: its checksum differs; {_REMEDY}")
        return {**call.plain, **load(content)}

    def _write(self) -> None:
        record = {
            "format": FORMAT,
            "transformer": self.transformer,
            "videos": self.videos,
            "calls": [
                {"file": c.file, "crc32": c.crc32, "plain": c.plain, "about": c.about}
                for c in self.calls
            ],
        }
        write_json(self.folder / CALLS_FILE, sealed(record))


@contextmanager
def recorded(transformer: nn.Module, most: int, *seed: int | str) -> Iterator[list[dict[str, Any]]]:
    """A list of the arguments of some calls that are made inside the block, tensors on the CPU.
    Each call is as likely to be among them as any other.

    Args:
        transformer: that is called.
        most: calls that are kept.
        seed: of which.
    """
    check_whole("most", most, 1)
    names = tuple(inspect.signature(type(transformer).forward).parameters)[1:]
    generator = derive_generator("calls", *seed)
    kept: list[dict[str, Any]] = []
    seen = 0

    def note(_transformer: Any, args: tuple, kwargs: Mapping[str, Any]) -> None:
        nonlocal seen
        given = dict(zip(names, args, strict=False)) | dict(kwargs)
        place = len(kept) if seen < most else int(torch.randint(seen + 1, (), generator=generator))
        seen += 1
        if place < most:
            copied = {name: _copied(x) for name, x in given.items() if name not in LEFT_OUT}
            kept[place : place + 1] = [copied]

    hook = transformer.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield kept
    finally:
        hook.remove()


def new_folder(folder: Path, transformer: nn.Module) -> CallFolder:
    """The calls of a folder to go on from, or none where it has none yet.

    Args:
        folder: made if need be.
        transformer: whose calls they are.

    Raises:
        FileError: for a folder with calls of another transformer.
    """
    name = class_name(transformer)
    if not (folder / CALLS_FILE).is_file():
        return CallFolder(folder, name)
    found = CallFolder.read(folder)
    if found.transformer != name:
        raise FileError(
            f"{folder} has calls of a {found.transformer}, and this is a {name}; the same is "
            f"allowed: {_REMEDY}"
        )
    return found


def _copied(x: Any) -> Any:
    return x.detach().to("cpu", copy=True) if isinstance(x, Tensor) else x
