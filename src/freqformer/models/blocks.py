"""One block of the transformer: modulated self-attention, text cross-attention, feed-forward.

Shape legend: B batch, N video tokens, C channels, L text tokens, T text channels, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding
from torch import Tensor, nn
from torch.nn import functional

from freqformer.attention import AttentionLayer
from freqformer.grid import Grid
from freqformer.ops.tokens import TokenOrder
from freqformer.routing import sinusoidal_embedding

NORM_EPS = 1e-6


@dataclass(frozen=True, eq=False)
class Conditions:
    """What every block is given beside its tokens."""

    grid: Grid
    timestep: Tensor
    """(B,) in [0, 1]."""
    modulation: Tensor
    """Shift, scale and gate of attention and feed-forward, (B, 6, C)."""
    rotary: tuple[Tensor, Tensor]
    token_order: TokenOrder
    text: Tensor | None
    """(B, L, T)."""
    text_mask: Tensor | None
    """bool (B, L), True where a text token may be seen."""


class TimestepModulation(nn.Module):
    """Timestep (B,) in [0, 1] and the video's dtype -> the modulation of all blocks (B, 6, C) and
    of the output (B, 2, C).

    One network for all blocks, which add a table of their own (AdaLN-single; Chen et al., arXiv
    2310.00426). All starts at zero: every block is the identity at first.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embedding = TimestepEmbedding(256, dim)
        self.linear = nn.Linear(dim, 8 * dim)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, timestep: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        # Not in the dtype that weights are stored in: layer-wise casting stores them in another
        # than it computes in.
        waves = sinusoidal_embedding(timestep, 256).to(dtype)
        blocks, output = (
            self.linear(functional.silu(self.embedding(waves)))
            .unflatten(1, (8, -1))
            .split([6, 2], 1)
        )
        return blocks, output


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (B, N, C) normalised over channels, then scaled and shifted by (B, C)."""
    return (
        functional.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * (1 + scale[:, None]) + shift[:, None]
    )


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to text where `cross_attention_dim` is given, and
    feed-forward, each added to its input."""

    def __init__(self, attention: AttentionLayer, cross_attention_dim: int | None) -> None:
        super().__init__()
        dim = attention.dim
        self.attn1 = attention
        self.attn2: Attention | None = None
        if cross_attention_dim is not None:
            self.norm_text = nn.LayerNorm(dim, eps=NORM_EPS)
            self.attn2 = Attention(
                query_dim=dim,
                cross_attention_dim=cross_attention_dim,
                heads=attention.num_heads,
                dim_head=attention.head_dim,
                bias=True,
                qk_norm="rms_norm",
                eps=NORM_EPS,
            )
            for parameter in self.attn2.to_out.parameters():  # type: ignore[union-attr]
                nn.init.zeros_(parameter)
        self.ff = FeedForward(dim, activation_fn="gelu-approximate")
        self.scale_shift_table = nn.Parameter(torch.zeros(6, dim))

    def forward(self, hidden_states: Tensor, given: Conditions) -> Tensor:
        """(B, N, C) -> (B, N, C), tokens in `given.token_order`."""
        table = (self.scale_shift_table + given.modulation).to(hidden_states.dtype)
        shift_attention, scale_attention, gate_attention, shift_ff, scale_ff, gate_ff = (
            table.unbind(1)
        )
        normed = modulate(hidden_states, shift_attention, scale_attention)
        attended = self.attn1(
            normed, given.grid, given.timestep, given.rotary, token_order=given.token_order
        )
        hidden_states = hidden_states + gate_attention[:, None] * attended
        if self.attn2 is not None and given.text is not None:
            hidden_states = hidden_states + self._read_text(self.norm_text(hidden_states), given)
        return hidden_states + gate_ff[:, None] * self.ff(
            modulate(hidden_states, shift_ff, scale_ff)
        )

    def _read_text(self, hidden_states: Tensor, given: Conditions) -> Tensor:
        assert self.attn2 is not None
        mask = given.text_mask
        if mask is None:
            return self.attn2(hidden_states, given.text)
        # A sample without any text gets zero; softmax over nothing is undefined.
        some = mask.any(1)[:, None]
        return self.attn2(hidden_states, given.text, (mask | ~some)[:, None]) * some[..., None]
