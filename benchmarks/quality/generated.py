"""Videos that a trained model generates, beside held-out clips: at the trained length and at four
times it.

Generation stops when the time is up and goes on with the next videos. Shape legend: B videos, F
frames, S rows and columns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from benchmarks.quality import data, state
from benchmarks.quality.motion import (
    SEED,
    SEGMENT,
    Means,
    Seen,
    frechet_distance,
    look_at,
    means,
)
from benchmarks.quality.runs import How
from benchmarks.quality.sizes import Size
from benchmarks.quality.tasks import Result, Task
from torch import Tensor

from freqformer.training.objective import TIMESTEP_SCALE
from freqformer.training.seeding import derive_generator, derive_seed

VIDEOS, LONG_VIDEOS = 64, 16
LONGER = 4
"""Times the trained length."""
STEPS = 50
"""Euler steps of a video."""
HELD_OUT = 256
"""Clips that generated videos are compared with."""
FEATURES = f"a fixed network of random weights, seed {SEED}"


def measure_generated(model: Any, task: Task, how: How) -> Result | None:
    """Compare generated videos with held-out clips.

    Args:
        model: trained, in evaluation mode.
        task: of its run.
        how: where, how long, and where what was generated so far is noted.

    Returns: what the result file says, JSON-able; None where the time was up.
    """
    size = task.run.size
    path = None if how.folder is None else how.folder / "generated" / f"{task.run.stem}.safetensors"
    noted = _noted(path, task)
    for name, count, longer in (("short", VIDEOS, 1), ("long", LONG_VIDEOS, LONGER)):
        batch = size.batch if longer == 1 else 1
        while len(noted.get(f"{name} features", ())) < count:
            if how.over:
                return None
            start = len(noted.get(f"{name} features", ()))
            indices = range(start, min(start + batch, count))
            seen = look_at(generate(model, size, indices, how.device, longer=longer))
            for kind, x in seen._asdict().items():
                earlier = [noted[f"{name} {kind}"]] if start else []
                noted[f"{name} {kind}"] = torch.cat([*earlier, x])
            if path is not None:
                state.write(path, noted, task.run.record)
    result = task.run.record | _compared(noted, size, how.device)
    if path is not None:
        path.unlink(missing_ok=True)
    return result


def _noted(path: Path | None, task: Task) -> dict[str, Tensor]:
    if path is None or not path.exists():
        return {}
    return state.read(path, task.run.record).tensors


@torch.no_grad()
def generate(
    model: Any, size: Size, indices: range, device: torch.device, *, longer: int = 1
) -> Tensor:
    """Videos from noise by Euler's method; the same index starts from the same noise in every
    model.

    Args:
        model: predicts velocities.
        size: of its clips.
        indices: which videos.
        device: where.
        longer: times the frames of a clip.

    Returns: (B, 3, F, S, S) in [-1, 1].
    """
    frames, rows, columns = size.video
    shape = (3, longer * frames, rows, columns)
    noise = [
        torch.randn(shape, generator=derive_generator("generated", index)) for index in indices
    ]
    video = torch.stack(noise).to(device)
    for step in range(STEPS):
        timestep = torch.full((len(video),), 1 - step / STEPS, device=device)
        eager = torch.compiler.set_stance("force_eager")
        with eager, torch.autocast(device.type, torch.bfloat16):
            velocity = model(video, timestep * TIMESTEP_SCALE, return_dict=False)[0]
        video = video - velocity.float() / STEPS
    return video.clamp(-1, 1)


def _held_out(size: Size, device: torch.device, part: int) -> Seen:
    frames, side, _ = size.video
    seed = derive_seed("held-out clips", part)
    clips = data.draw_scenes(HELD_OUT, seed, device, held_out=True, frames=frames, side=side)
    return look_at(clips.video)


def _compared(noted: dict[str, Tensor], size: Size, device: torch.device) -> dict[str, Any]:
    """Distances and ratios to held-out clips of the trained length."""
    reference, others = (_held_out(size, device, part) for part in range(2))
    target, usual = reference.features.flatten(0, 1), means(reference)
    short, long = (
        Seen(noted[f"{name} features"], noted[f"{name} statistics"]) for name in ("short", "long")
    )
    few = Seen(*(x[:VIDEOS] for x in others))
    quarter = size.video[0] // SEGMENT
    quarters = [Seen(*(x[:, i * quarter : (i + 1) * quarter] for x in long)) for i in range(LONGER)]
    return {
        "videos": VIDEOS,
        "sampler_steps": STEPS,
        "features": FEATURES,
        "held_out_clips": HELD_OUT,
        "frechet": _rounded(frechet_distance(short.features.flatten(0, 1), target)),
        "frechet_of_held_out": _rounded(frechet_distance(few.features.flatten(0, 1), target)),
        **_ratios(means(short), usual),
        "long": {
            "videos": LONG_VIDEOS,
            "frames": LONGER * size.video[0],
            "quarters": [
                {"frechet": _rounded(frechet_distance(one.features.flatten(0, 1), target))}
                | _ratios(means(one), usual)
                for one in quarters
            ],
        },
    }


def _ratios(found: Means, usual: Means) -> dict[str, float]:
    """Means over those of held-out clips."""
    return {name: _rounded(value / vars(usual)[name]) for name, value in vars(found).items()}


def _rounded(value: float) -> float:
    return round(value, 5)
