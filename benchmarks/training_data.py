"""Whether data keeps up with a GPU: `freqformer cache` beside the rate of its VAE alone, and how
much of a training step on a cache of clips of mixed sizes the GPU is busy.

    PYTHONPATH=src:. python -m benchmarks.training_data --work FOLDER [--rows cache busy]
    [--output FOLDER]

`cache` codes videos of 81 frames of 480 x 832 by AutoencoderKLWan at its real size, with random
weights; it needs PyAV. `busy` trains a model of 86 million weights on 1,000 clips of 65,536 tokens
in three shapes, and reads the profile that `run.profile` writes; it takes 17 GB of disk. Writes
training_data.json after each. `--tiny` tries both on a CPU, and its figures say nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarks.training_data_busy import BusyAmount, busy_row
from benchmarks.training_data_cache import CacheAmount, cache_row

from benchmarks import record


@dataclass(frozen=True)
class Amounts:
    """How much is measured."""

    cache: CacheAmount
    busy: BusyAmount


TINY_VAE: dict[str, Any] = {
    "base_dim": 3,
    "z_dim": 4,
    "latents_mean": [0.0] * 4,
    "latents_std": [1.0] * 4,
}
WHOLE = Amounts(CacheAmount(), BusyAmount())
TINY = Amounts(
    CacheAmount(videos=3, frames=5, height=32, width=48, vae=TINY_VAE),
    BusyAmount(
        clips=12,
        shapes=((5, 32, 48), (9, 32, 32)),
        steps=6,
        profiled=(3, 5),
        watched=(2, 3),
        text_channels=16,
        text_tokens=7,
        vae=TINY_VAE,
        model={"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 12},
    ),
)


def rows_of(amounts: Amounts) -> dict[str, Callable[[Path, torch.device], dict[str, Any]]]:
    """What measures each row in a work folder, on a device."""
    return {
        "cache": lambda work, device: cache_row(work, amounts.cache, device),
        "busy": lambda work, device: busy_row(work, amounts.busy, device),
    }


def report(results: dict[str, Any]) -> None:
    """Print what there is."""
    if row := results.get("cache"):
        print(
            f"cache: {row['command_clips_per_s']:.3f} clips/s from end to end,"
            f" {row['steady_clips_per_s']:.3f} between clips; the VAE alone"
            f" {row['vae_clips_per_s']:.3f}: {row['steady_of_vae']:.3f} of it"
        )
    if row := results.get("busy"):
        print(
            f"busy: {row['busy']:.2%} of {row['window_ms']:.0f} ms in {row['profiled']} steps of"
            f" {row['tokens']} tokens; waits by place: {row['waits']}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="empty folder for data and runs")
    parser.add_argument("--rows", nargs="+", choices=("cache", "busy"), default=["busy", "cache"])
    parser.add_argument("--tiny", action="store_true", help="a trial, on a CPU too")
    parser.add_argument("--output", type=Path, default=record.RESULTS)
    parser.add_argument("--commit", help="of this checkout, where git isn't there to ask")
    given = parser.parse_args()
    if not given.tiny and not torch.cuda.is_available():
        raise SystemExit("no CUDA GPU: this benchmark measures one; --tiny tries it on a CPU")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results: dict[str, Any] = {"tiny": True} if given.tiny else {}
    rows = rows_of(TINY if given.tiny else WHOLE)
    for name in given.rows:
        results[name] = rows[name](given.work / name, device)
        path = record.save("training_data", results, given.output, given.commit)
        print(f"wrote {path}", flush=True)
    report(results)


if __name__ == "__main__":
    main()
