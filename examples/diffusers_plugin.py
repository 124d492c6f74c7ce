"""The plug-in for diffusers' models, on a tiny Wan transformer whose random weights are made on the
spot.

    python examples/diffusers_plugin.py

With a trained pipeline `pipe`, pass `pipe.transformer`; the rest stays as it is. (`WanPipeline`
needs the packages transformers and ftfy for its text encoder; the loop here stands for it, with
made-up text.)
"""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel

from freqformer import Band, FreqFormerConfig
from freqformer.integrations.diffusers import enable_frequency_attention
from freqformer.routing import RoutingTable


def make_transformer(layers: int = 2, heads: int = 4) -> WanTransformer3DModel:
    torch.manual_seed(0)
    return WanTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=24,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=128,
        num_layers=layers,
        rope_max_seq_len=64,
    ).eval()


@torch.no_grad()
def generate(transformer: WanTransformer3DModel, steps: int = 4) -> torch.Tensor:
    """Latents (1, 4, 4, 24, 32) from noise."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 4, 4, 24, 32, generator=generator)
    text = torch.randn(1, 12, 16, generator=generator)
    for timestep in scheduler.timesteps:
        velocity = transformer(latents, timestep[None], text, return_dict=False)[0]
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
    return latents


def main() -> dict[str, float]:
    transformer = make_transformer()
    layers, heads = len(transformer.blocks), transformer.config["num_attention_heads"]
    # A table says what every head does: two buckets of timesteps, least noise first.
    bands = torch.full((2, layers, heads), Band.HIGH)  # a window around each tile of tokens
    bands[:, :, 0] = Band.LOW  # one head of four sees everything, compressed
    config = FreqFormerConfig(tile=(2, 4, 4), window=(3, 3, 3), mid_tiles=8, compression=8)
    table = RoutingTable(bands, torch.full_like(bands, 8), config)

    dense = generate(transformer)
    with enable_frequency_attention(transformer, table):
        banded = generate(transformer)
    again = generate(transformer)
    changed = float((banded - dense).norm() / dense.norm())
    print(f"latents with frequency attention differ from dense attention's by {changed:.2%}")
    print(f"after the `with` the model is as it was: {torch.equal(again, dense)}")
    return {"changed": changed, "after": float((again - dense).norm())}


if __name__ == "__main__":
    main()
