"""How much of a training step the GPU is busy, by the profile of a run on a cache."""

from __future__ import annotations

import gzip
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tests.support.tiny_encoders import tiny_tokenizer
from torch import Tensor

from freqformer.config import FreqFormerConfig
from freqformer.grid import Extents
from freqformer.models.latents import latent_size
from freqformer.training.cache.buckets import Bucket
from freqformer.training.cache.index import CachedClip, CachedText, CacheIndex
from freqformer.training.cache.shards import checksum, write_shard
from freqformer.training.config import DataConfig, RunConfig, TrainConfig
from freqformer.training.loop import train
from freqformer.training.report import StepReport

ON_GPU = ("kernel", "gpu_memset")
"""Kinds of a profile's events that count as work of a GPU; copies of the next batch run beside."""
ON_CPU = ("cpu_op",)
OF_A_SHARD = 12
"""Clips."""
TEXTS = 32


@dataclass(frozen=True)
class BusyAmount:
    """What is trained on, and for how long."""

    clips: int = 1000
    shapes: tuple[Extents, ...] = ((61, 1024, 1024), (125, 512, 1024), (253, 512, 512))
    """Frames, rows and columns in pixels; a token stands for 4 frames of 16 x 16."""
    steps: int = 60
    profiled: tuple[int, int] = (41, 55)
    """First and last step."""
    watched: tuple[int, int] = (21, 24)
    """First and last step whose waits for the GPU are counted."""
    text_channels: int = 1024
    text_tokens: int = 200
    vae: dict[str, Any] = field(default_factory=lambda: {"base_dim": 8})
    """Constructor arguments of the VAE that the cache says it is of; nothing is coded by it."""
    model: dict[str, Any] = field(
        default_factory=lambda: {
            "num_layers": 6,
            "num_attention_heads": 8,
            "attention_head_dim": 128,
        }
    )


def busy_row(work: Path, amount: BusyAmount, device: torch.device) -> dict[str, Any]:
    """The share of time in which the GPU computes, over all profiled steps from the first kernel to
    the last; and what waited for it.

    Args:
        work: folder for cache and run.
        amount: what is trained on.
        device: that trains.
    """
    on_gpu = device.type == "cuda"
    tokens = write_noise_cache(work / "cache", amount, device)
    waits = Waits(*amount.watched, on_gpu=on_gpu)
    seconds: list[float] = []

    def follow(report: StepReport) -> None:
        seconds.append(report.seconds)
        waits.after(report.step)

    train(
        TrainConfig(
            str(work / "run"),
            model={**amount.model, "frequency": FreqFormerConfig().to_dict()},
            data=DataConfig(cache=str(work / "cache")),
            run=RunConfig(
                max_steps=amount.steps,
                batch_size=1,
                precision="bf16" if on_gpu else "fp32",
                device="auto" if on_gpu else "cpu",
                progress=False,
                profile=amount.profiled,
            ),
        ),
        on_step=follow,
    )
    first, last = amount.profiled
    path = work / "run" / "profile" / f"steps-{first}-{last}.json.gz"
    spans = spans_of(path, ON_GPU if on_gpu else ON_CPU)
    began = min(span[0] for span in spans)
    ended = max(span[1] for span in spans)
    before = [b - a for a, b in pairwise(seconds)]
    return {
        "clips": amount.clips,
        "shapes": [list(shape) for shape in amount.shapes],
        "tokens": sorted(set(tokens)),
        "profiled": last - first + 1,
        "busy": covered(spans) / (ended - began),
        "window_ms": (ended - began) / 1e3,
        "median_step_s": median(before[amount.watched[1] : first - 2] or before),
        "waits": waits.by_place,
    }


class Waits:
    """Counts where the host waited for the GPU, by torch's own warnings.

    Args:
        first, last: step.
        on_gpu: whether there is one; nothing is counted without.
    """

    def __init__(self, first: int, last: int, *, on_gpu: bool) -> None:
        self._first, self._last, self._on_gpu = first, last, on_gpu
        self._shown = warnings.showwarning
        self.by_place: dict[str, int] = Counter()
        """Waits of all watched steps, by file and line."""

    def after(self, step: int) -> None:
        """Begin or end counting after a step."""
        if not self._on_gpu:
            return
        if step == self._first - 1:
            warnings.simplefilter("always")
            warnings.showwarning = self._note
            torch.cuda.set_sync_debug_mode("warn")
        if step == self._last:
            torch.cuda.set_sync_debug_mode("default")
            warnings.showwarning = self._shown

    def _note(self, message: Any, _kind: Any, filename: str, line: int, *_more: Any) -> None:
        if "synchron" in str(message):
            parts = Path(filename).parts
            self.by_place[f"{'/'.join(parts[-3:])}:{line}"] += 1


def spans_of(path: Path, kinds: Sequence[str]) -> list[tuple[float, float]]:
    """(beginning, end) in microseconds of a profile's events of these kinds."""
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    found = [
        (float(event["ts"]), float(event["ts"]) + float(event["dur"]))
        for event in events
        if event.get("ph") == "X" and event.get("cat") in kinds
    ]
    if not found:
        raise SystemExit(f"{path} has no events of the kinds {kinds}: nothing to measure")
    return found


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """The length of the union of spans."""
    total = 0.0
    until = float("-inf")
    for began, ended in sorted(spans):
        total += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return total


def write_noise_cache(folder: Path, amount: BusyAmount, device: torch.device) -> list[int]:
    """A cache of noise, as `freqformer cache` writes one of videos; the tokens of every shape.

    Args:
        folder: of the cache.
        amount: clips and their shapes.
        device: that draws.
    """
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    vae: Any = AutoencoderKLWan(**amount.vae)
    vae.save_pretrained(folder / "vae")
    _write_text_encoder(folder, amount.text_channels)
    buckets = [Bucket(*shape) for shape in amount.shapes]
    channels = int(vae.config["z_dim"])
    generator = torch.Generator(device).manual_seed(0)
    clips: list[CachedClip] = []
    tokens: list[int] = []
    for place, bucket in enumerate(buckets):
        frames, height, width = latent_size(bucket.size, vae)
        tokens.append(frames * (height // 2) * (width // 2))
        count = len(range(place, amount.clips, len(buckets)))
        draw = _drawer((2, channels, frames, height, width), generator, device)
        clips += _write_latents(folder, place, count, draw)
    CacheIndex(
        recipe={"fps": 16.0, "latents": "distribution", "text_tokens": amount.text_tokens},
        channels=channels,
        compression=(4, 8),
        text_channels=amount.text_channels,
        buckets=tuple(buckets),
        clips=tuple(clips),
        texts=_write_texts(folder, amount),
        skipped=(),
    ).write(folder)
    return tokens


def _drawer(
    shape: tuple[int, ...], generator: torch.Generator, device: torch.device
) -> Callable[[], Tensor]:
    """Draws mean and log-variance of a clip, float16 on the CPU."""

    def draw() -> Tensor:
        return torch.randn(shape, generator=generator, device=device).half().cpu()

    return draw


def _write_latents(
    folder: Path, bucket: int, count: int, draw: Callable[[], Tensor]
) -> list[CachedClip]:
    made = []
    for number, places in enumerate(_shards(count)):
        name = f"latents-000-{1000 * bucket + number:05d}.safetensors"
        tensors: dict[str, Tensor] = {}
        for place in places:
            mean, logvar = draw()
            tensors[f"{place:06d}.mean"] = mean.contiguous()
            tensors[f"{place:06d}.logvar"] = logvar.contiguous()
            crc = checksum([mean, logvar])
            file = f"{bucket}-{number}-{place}.mp4"
            made.append(CachedClip(file, 0.0, bucket, 1 + len(made) % TEXTS, name, place, crc))
        write_shard(folder / name, tensors, {"key": name})
    return made


def _shards(count: int) -> Iterator[range]:
    """The places in each shard of so many clips."""
    for first in range(0, count, OF_A_SHARD):
        yield range(min(OF_A_SHARD, count - first))


def _write_texts(folder: Path, amount: BusyAmount) -> tuple[CachedText, ...]:
    name = "text-000-00000.safetensors"
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    made = []
    for place in range(TEXTS + 1):
        length = 1 if place == 0 else amount.text_tokens - 5 * (place % 2)
        embeds = torch.randn(length, amount.text_channels, generator=generator).bfloat16()
        tensors[f"{place:06d}"] = embeds
        made.append(CachedText(name, place, length, checksum([embeds])))
    write_shard(folder / name, tensors, {"key": name})
    return tuple(made)


def _write_text_encoder(folder: Path, channels: int) -> None:
    """An encoder that nothing asks, for the pipeline that a run saves."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=16, d_model=channels, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(folder / "text_encoder")
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
