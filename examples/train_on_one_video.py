"""Train a small model on one video, the clip that comes with the package, and generate from noise.

    python examples/train_on_one_video.py [--video holiday.mp4] [--output runs/one-video] [--seconds
    25]

Half a minute shows that the loop works; for a picture give it some minutes. The same command goes
on where it stopped.
"""

import argparse
from importlib.resources import files
from pathlib import Path

import torch

from freqformer import FreqFormerPipeline
from freqformer.training.config import DataConfig, OptimizerConfig, RunConfig, TrainConfig
from freqformer.training.loop import train


def main(arguments: list[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--video", default=str(files("freqformer") / "assets" / "pagoda.mp4"))
    parser.add_argument("--output", default="runs/one-video")
    parser.add_argument("--seconds", type=float, default=25, help="of training")
    parser.add_argument(
        "--steps", type=int, default=100_000, help="of training, if they are done sooner"
    )
    asked = parser.parse_args(arguments)

    config = TrainConfig(
        output=asked.output,
        model={
            "num_layers": 2,
            "num_attention_heads": 4,
            "attention_head_dim": 32,
            "patch_size": [2, 8, 8],
            "frequency": {"tile": [1, 3, 5], "summary_tokens": 0},
            "absolute_positions": True,
        },
        data=DataConfig(path=asked.video, num_frames=16, height=48, width=80, fps=8),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=20),
        run=RunConfig(max_steps=asked.steps, max_seconds=asked.seconds, batch_size=1, device="cpu"),
    )
    losses = []
    folder = train(config, on_step=lambda report: losses.append(report.loss))
    print(
        f"{len(losses)} steps, loss {losses[0]:.3f} -> {losses[-1]:.3f}"
        if losses
        else "this run was done before"
    )

    pipeline = FreqFormerPipeline.from_pretrained(str(folder))
    generator = torch.Generator().manual_seed(0)
    made = pipeline(16, 48, 80, num_inference_steps=10, generator=generator, output_type="uint8")
    target = Path(asked.output) / "generated.mp4"
    made.save(target, fps=8)
    print(f"wrote {target}, and its frames as {target.with_suffix('.png')}")
    return target


if __name__ == "__main__":
    main()
