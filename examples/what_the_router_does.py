"""Read what a trained router does: how the shipped model weighs its heads' bands at every step from
noise to video.

    python examples/what_the_router_does.py [--output router.png] [--steps 20]

Every head of that model has a window (HIGH) and a LOW branch that sees the whole clip, compressed.
Its router adds to the weight of LOW by noise level: red adds, blue takes away.
"""

import argparse
from pathlib import Path

import torch

from freqformer import Band, FreqFormerPipeline
from freqformer.analysis.figures import weights_figure
from freqformer.demo.shipped import SHIPPED_MODEL


def main(arguments: list[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("router.png"))
    parser.add_argument("--steps", type=int, default=20, help="denoising steps")
    asked = parser.parse_args(arguments)

    pipeline = FreqFormerPipeline.from_pretrained(str(SHIPPED_MODEL))
    timesteps, weights = [], []

    def look(model, inputs, output):
        """After every call of the model: its noise level, and the routers' logits (batch, heads,
        bands) by layer."""
        timesteps.append(float(inputs[1][0]) / 1000)
        logits = torch.stack([layer[0] for layer in model.routing_logits])
        weights.append(logits[..., Band.LOW].float())

    pipeline.transformer.register_forward_hook(look)
    generator = torch.Generator().manual_seed(0)
    pipeline(16, 64, 96, num_inference_steps=asked.steps, generator=generator, output_type="uint8")

    steps_layers_heads = torch.stack(weights)
    weights_figure(steps_layers_heads, timesteps, asked.output)
    for name, index in (("first", 0), ("last", -1)):
        mean = float(steps_layers_heads[index].mean())
        print(
            f"{name} step, noise level {timesteps[index]:.2f}: adds {mean:+.2f} to the weight of "
            "LOW in the mean head"
        )
    print(f"wrote {asked.output}")
    return asked.output


if __name__ == "__main__":
    main()
