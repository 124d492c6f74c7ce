"""What a layer does to its queries and keys before attention, handed to the operation.

Shape legend: B batch, N tokens, C channels, H heads, D head_dim, P pairs of channels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn

from freqformer.ops.parameters import AttentionParameters, RotaryEmbedding

RMS_NORMS = (nn.RMSNorm, RMSNorm)


class Projected(NamedTuple):
    """Queries, keys and values (B, N, H, D), and what the operation does to the first two."""

    query: Tensor
    key: Tensor
    value: Tensor
    parameters: AttentionParameters


class Queries(NamedTuple):
    """Queries and keys (B, N, H, D), and what the operation does to them."""

    query: Tensor
    key: Tensor
    parameters: AttentionParameters


def project(
    attn: Any,
    tokens: Tensor,
    rotary: RotaryEmbedding | None = None,
    *,
    across_heads: bool = False,
    norm_text: bool = True,
) -> Projected:
    """Project tokens (B, N, C), with arguments as those of `project_queries`."""
    query, key, parameters = project_queries(
        attn, tokens, rotary, across_heads=across_heads, norm_text=norm_text
    )
    return Projected(query, key, project_values(attn, tokens), parameters)


def project_values(attn: Any, tokens: Tensor) -> Tensor:
    """Values (B, N, H, D) of tokens (B, N, C)."""
    return attn.to_v(tokens).unflatten(2, (attn.heads, -1))


def project_queries(
    attn: Any,
    tokens: Tensor,
    rotary: RotaryEmbedding | None = None,
    *,
    across_heads: bool = False,
    norm_text: bool = True,
) -> Queries:
    """Queries and keys of tokens (B, N, C), raw, for the operation to normalise and turn.

    A norm that isn't the plain RMS norm of its class, such as CogVideoX's or one that an offload
    wraps, is run here.

    Args:
        attn: the layer, with projections, `norm_q` and `norm_k`.
        tokens: of the video, and of text where both share what is learned.
        rotary: the operation's.
        across_heads: whether the norms are over all heads' channels.
        norm_text: whether they are of text behind the video too.
    """
    projected = (attn.to_q(tokens), attn.to_k(tokens))
    norms = (attn.norm_q, attn.norm_k)
    weights = _plain_weights(norms, tokens)
    if weights is None and across_heads:
        projected = _normalised(projected, norms)
    query, key = (x.unflatten(2, (attn.heads, -1)) for x in projected)
    if weights is None and not across_heads:
        query, key = _normalised((query, key), norms)
    if weights is None:
        return Queries(query, key, AttentionParameters(rotary=rotary))
    query_norm, key_norm = weights
    if across_heads:
        query_norm = query_norm.unflatten(0, (attn.heads, -1))
        key_norm = key_norm.unflatten(0, (attn.heads, -1))
    parameters = AttentionParameters(
        rotary=rotary,
        query_norm=query_norm,
        key_norm=key_norm,
        norm_eps=attn.norm_q.eps,
        norm_across_heads=across_heads,
        norm_text=norm_text,
    )
    return Queries(query, key, parameters)


def _normalised(tensors: tuple[Tensor, Tensor], norms: tuple[Any, Any]) -> tuple[Tensor, Tensor]:
    """Queries and keys after a layer's norms, if it has them."""
    query, key = (x if norm is None else norm(x) for x, norm in zip(tensors, norms, strict=True))
    return query, key


def _plain_weights(norms: tuple[Any, Any], tokens: Tensor) -> tuple[Tensor, Tensor] | None:
    """The weights of two RMS norms around which nothing was put; None for others.

    Offloading brings weights when a module is called, and hooks may change what it gives: such a
    norm has to be called.
    """
    if not all(_is_plain(norm) and norm.weight.device == tokens.device for norm in norms):
        return None
    query_norm, key_norm = norms
    if query_norm.eps != key_norm.eps or query_norm.eps is None:
        return None
    return query_norm.weight, key_norm.weight


def _is_plain(norm: Any) -> bool:
    if type(norm) not in RMS_NORMS or norm.weight is None:
        return False
    if getattr(norm, "bias", None) is not None:
        return False
    wrapped = norm._forward_hooks or norm._forward_pre_hooks or "forward" in norm.__dict__
    return not wrapped


def neighbours(rotary: tuple[Tensor, Tensor] | None, tokens: Tensor) -> RotaryEmbedding | None:
    """Of tables (..., 2 P) that hold the angle of every pair of neighbouring channels twice.

    Args:
        rotary: cos and sin.
        tokens: whose device the tables are wanted on.
    """
    if rotary is None:
        return None
    cos, sin = (table.to(tokens.device) for table in rotary)
    return RotaryEmbedding(cos[..., ::2], sin[..., 1::2])


def of_heads(
    rotary: tuple[Tensor, Tensor] | None, tokens: Tensor, heads: int
) -> RotaryEmbedding | None:
    """As `neighbours`, of tables (B, N, C) that hold every head's own angles."""
    if rotary is None:
        return None
    cos, sin = (table.unflatten(2, (heads, -1)) for table in rotary)
    return neighbours((cos, sin), tokens)


def halves(rotary: tuple[Tensor, Tensor] | None) -> RotaryEmbedding | None:
    """Of tables (..., 2 P) that hold each angle twice, for channel i and channel i + P."""
    if rotary is None:
        return None
    cos, sin = (table.chunk(2, -1)[0] for table in rotary)
    return RotaryEmbedding(cos, sin, "halved")
