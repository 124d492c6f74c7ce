"""The same model trained through the fused plan and through eager attention: 200 steps, several
seeds, loss by loss.

Needs a CUDA GPU, and no package beside torch, Triton, diffusers and matplotlib:

    PYTHONPATH=src python benchmarks/loss_run.py [--output FOLDER]

Writes loss_run.json and loss_run.png. A seed draws the weights; clips, noise and timesteps of a
step are the same in every run. So what differs between seeds is smaller than between runs whose
data differ too, and what two computations of one seed may differ by is held against that.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor

import record
from freqformer.config import FreqFormerConfig
from freqformer.models.transformer import FreqFormerTransformer3DModel
from freqformer.ops.backends import ImplChoice
from freqformer.training.objective import flow_matching_loss, learning_rate_factor, sample_timesteps
from freqformer.training.synthetic import SyntheticClips

DEVICE = "cuda"
VIDEO = {"num_frames": 8, "height": 64, "width": 64}
"""2,048 tokens of 4 x 4 pixels, 16 tiles."""
CONFIG = FreqFormerConfig(
    mid_tiles=4,
    window=(1, 2, 2),
    summary_tokens=16,
    allocation="thirds",
    routing="fixed",
    low_branch=False,
)
MODEL: dict[str, Any] = {
    "patch_size": (1, 4, 4),
    "num_layers": 3,
    "num_attention_heads": 6,
    "attention_head_dim": 64,
}
"""Six heads, two in each band."""
SEEDS = (0, 1, 2)
STEPS, WARMUP, CLIPS, BATCH = 200, 20, 32, 2
LEARNING_RATE = 1e-3
IMPLS: tuple[ImplChoice, ...] = ("eager", "triton")


def losses(impl: ImplChoice, seed: int, clips: Tensor, steps: int) -> list[float]:
    """Flow-matching loss of every step, bfloat16 by autocast; clips (count, 3, F, H, W)."""
    torch.manual_seed(seed)
    model: Any = FreqFormerTransformer3DModel(**MODEL, frequency=CONFIG)
    model.train().to(DEVICE)
    model.set_impl(impl)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, betas=(0.9, 0.99))
    found = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * learning_rate_factor(step, step / steps, WARMUP)
        draw = torch.Generator().manual_seed(step)
        clip = clips[(step * BATCH + torch.arange(BATCH)) % len(clips)]
        timestep = sample_timesteps(BATCH, generator=draw).to(DEVICE)
        noise = torch.randn(clip.shape, generator=draw).to(DEVICE)
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = flow_matching_loss(model, clip, timestep, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.detach())
    if not bool(torch.stack(found).isfinite().all()):
        raise SystemExit(f"a loss of impl={impl!r} with seed {seed} is not finite")
    return torch.stack(found).tolist()


def compare(curves: dict[str, list[list[float]]]) -> dict[str, Any]:
    """How far apart the computations are at equal seed, beside eager's range over the seeds at the
    same step."""
    eager = list(zip(*curves["eager"], strict=True))
    fused = list(zip(*curves["triton"], strict=True))
    ranges = [max(step) - min(step) for step in eager]
    apart = [
        max(abs(a - b) for a, b in zip(one, other, strict=True))
        for one, other in zip(eager, fused, strict=True)
    ]
    largest = max(range(len(apart)), key=lambda step: apart[step])
    # All seeds begin by predicting zero: until they differ, there is no range to be in.
    begun = [(gap, wide) for gap, wide in zip(apart[WARMUP:], ranges[WARMUP:], strict=True)]
    return {
        "largest_difference": apart[largest],
        "at_step": largest + 1,
        "range_at_that_step": ranges[largest],
        "median_difference": median(apart),
        "median_range": median(ranges),
        "steps_within_range_after_warmup": fmean(gap <= wide for gap, wide in begun),
        "last_20_steps": {
            impl: [fmean(curve[-20:]) for curve in runs] for impl, runs in curves.items()
        },
    }


def draw(curves: dict[str, list[list[float]]], path: Path) -> None:
    """The curves with eager's range over the seeds, and the differences beside that range."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (whole, apart) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    steps = range(1, len(curves["eager"][0]) + 1)
    at_step = list(zip(*curves["eager"], strict=True))
    low, high = [min(step) for step in at_step], [max(step) for step in at_step]
    whole.fill_between(steps, low, high, color="0.85", label="eager, range over seeds")
    gaps = []
    for seed, (eager, fused) in enumerate(zip(curves["eager"], curves["triton"], strict=True)):
        whole.plot(steps, eager, color=f"C{seed}", linewidth=1, label=f"eager, seed {seed}")
        whole.plot(
            steps, fused, "--", color="black", linewidth=0.7, label="fused" if seed == 0 else None
        )
        gaps.append([abs(a - b) for a, b in zip(eager, fused, strict=True)])
    whole.set(xlabel="step", ylabel="loss", title="training loss, bfloat16")
    for seed, gap in enumerate(gaps):
        apart.semilogy(
            steps, gap, color=f"C{seed}", linewidth=0.8, label=f"|fused - eager|, seed {seed}"
        )
    apart.semilogy(
        steps,
        [b - a for a, b in zip(low, high, strict=True)],
        color="0.6",
        label="eager, range over seeds",
    )
    apart.set(xlabel="step", title="difference at equal seed")
    for axes in (whole, apart):
        axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--output",
        type=Path,
        default=record.RESULTS,
        help="folder for loss_run.json and loss_run.png",
    )
    parser.add_argument("--commit", help="of this code, where the machine has no git")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA GPU: this benchmark measures one")
    source = SyntheticClips(0, **VIDEO)
    clips = torch.stack([source.load(index).clip for index in range(CLIPS)]).to(DEVICE)
    curves: dict[str, list[list[float]]] = {impl: [] for impl in IMPLS}
    for seed in SEEDS:
        for impl in IMPLS:
            curves[impl].append(losses(impl, seed, clips, arguments.steps))
            print(
                f"seed {seed}, {impl}: {curves[impl][-1][0]:.4f} to "
                f"{fmean(curves[impl][-1][-20:]):.4f}",
                flush=True,
            )
    found = compare(curves)
    print(found)
    settings = {
        "video": VIDEO,
        "config": CONFIG.to_dict(),
        "model": MODEL,
        "batch": BATCH,
        "seeds": SEEDS,
    }
    path = record.save(
        "loss_run", {**settings, **found, "losses": curves}, arguments.output, arguments.commit
    )
    draw(curves, arguments.output / "loss_run.png")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
