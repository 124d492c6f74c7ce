"""Frequency attention as the self-attention of a transformer of your own: a small DiT for video
latents.

python examples/attention_in_your_dit.py
"""

import torch
from torch import nn

from freqformer import FreqAttention, Grid
from freqformer.models.embeddings import rotary_tables


class Block(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.attention = FreqAttention(dim, num_heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, tokens, grid, timestep, rotary):
        attended = self.attention(
            self.norms[0](tokens), grid, timestep, rotary, token_order="raster"
        )
        tokens = tokens + attended
        return tokens + self.mlp(self.norms[1](tokens))


class VideoDiT(nn.Module):
    """Velocity of noisy latents (batch, channels, frames, height, width) at noise levels (batch,)
    from 0 to 1."""

    def __init__(
        self, channels: int = 4, dim: int = 96, num_heads: int = 4, num_layers: int = 2
    ) -> None:
        super().__init__()
        patch = (1, 2, 2)
        self.patchify = nn.Conv3d(channels, dim, patch, patch)
        self.unpatchify = nn.ConvTranspose3d(dim, channels, patch, patch)
        self.time = nn.Sequential(nn.Linear(1, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.blocks = nn.ModuleList(Block(dim, num_heads) for _ in range(num_layers))
        self.head_dim = dim // num_heads

    def forward(self, latents, timestep):
        patches = self.patchify(latents)
        grid = Grid(
            *patches.shape[2:]
        )  # the tokens' places: all that attention needs to know of the video
        rotary = rotary_tables(grid, None, self.head_dim, latents.device)  # None: in raster order
        tokens = patches.flatten(2).transpose(1, 2) + self.time(timestep[:, None])[:, None]
        for block in self.blocks:
            tokens = block(tokens, grid, timestep, rotary)
        return self.unpatchify(tokens.transpose(1, 2).unflatten(2, grid.shape))


def main(steps: int = 30) -> list[float]:
    torch.manual_seed(0)
    model = VideoDiT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    clip = nn.functional.interpolate(torch.randn(1, 4, 3, 4, 5), (4, 24, 32), mode="trilinear")
    losses = []
    for step in range(steps):
        noise, timestep = torch.randn_like(clip), torch.rand(1)
        noisy = (1 - timestep) * clip + timestep * noise
        loss = nn.functional.mse_loss(model(noisy, timestep), noise - clip)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 10 == 0:
            print(f"step {step:3}: loss {loss.item():.3f}")
    print(f"4 x 12 x 16 = {4 * 12 * 16:,} tokens; loss of the last step {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
