"""What an attention layer learns beside its projections."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from freqformer._validate import on_host

Pairs = Literal["interleaved", "halved"]
"""Which channels a rotary embedding turns together: 2i and 2i + 1, or i and i + P of P pairs."""


@dataclass(frozen=True, eq=False)
class RotaryEmbedding:
    """Angles by which queries and keys are turned, one for every token and pair of channels.

    P pairs are the first 2 P channels of a head, P at most head_dim / 2; later channels stay.
    """

    cos: Tensor
    """(tokens, P), or (batch or 1, tokens, heads or 1, P) where samples or heads differ; floats of
    any strides. The tokens are the video's in the order of the call, or all tokens, where text is
    turned too."""
    sin: Tensor
    """As cos."""
    pairs: Pairs = "interleaved"
    """`interleaved`: channels 2i and 2i + 1 are pair i, as in Wan; `halved`: channels i and i + P,
    as in Llama."""

    @property
    def by_token(self) -> RotaryEmbedding:
        """The same with tables (batch or 1, tokens, heads or 1, P)."""
        if self.cos.ndim == 4:
            return self
        return RotaryEmbedding(self.cos[None, :, None], self.sin[None, :, None], self.pairs)

    def of_heads(self, heads: slice) -> RotaryEmbedding:
        """The same of some heads."""
        if self.cos.ndim == 2 or self.cos.shape[2] == 1:
            return self
        return RotaryEmbedding(self.cos[:, :, heads], self.sin[:, :, heads], self.pairs)

    def of_rows(self, rows: Tensor, heads: int) -> tuple[Tensor, Tensor]:
        """cos and sin of rows (sample * heads + head), int64 (R,): each (R or 1, tokens, P)."""
        whole = self.by_token
        return _of_rows(whole.cos, rows, heads), _of_rows(whole.sin, rows, heads)


def _of_rows(table: Tensor, rows: Tensor, heads: int) -> Tensor:
    samples, _, own_heads, _ = table.shape
    if samples == 1 and own_heads == 1:
        return table[:, :, 0]
    sample = rows // heads if samples > 1 else rows * 0
    head = rows % heads if own_heads > 1 else rows * 0
    return table[sample, :, head]


@dataclass(frozen=True, eq=False)
class AttentionParameters:
    """Learned inputs of `frequency_attention`; what is None takes no part.

    The operation takes them in the order norm, bands, rotary embedding: with `query_norm` and
    `key_norm` queries and keys arrive raw, and with `rotary` they arrive NOT rotated. Without them
    they arrive normalised and rotated, and bands are taken of what arrives.
    """

    summary_queries: Tensor | None = None
    """Pooling queries of the mid and high summaries, (heads, 2, head_dim); None leaves these
    summaries out."""
    summary_offsets: Tensor | None = None
    """Added to the bias of the low, mid and high summaries, (heads, 3) or (batch, heads, 3); None
    adds nothing.

    At 0 summaries weigh as much as all the tokens that they stand for, far below they are hardly
    seen.
    """
    gains: Tensor | None = None
    """Gain per head and band for `band_features="band_gains"`, (heads, 3)."""
    rotary: RotaryEmbedding | tuple[Tensor, Tensor] | None = None
    """The rotary embedding of queries and keys; a pair (cos, sin) is one of neighbouring channels,
    each (video tokens, head_dim / 2) in the order of the call's tokens."""
    query_norm: Tensor | None = None
    """Weight of the RMS norm over head_dim of every query, (head_dim,); of the one over all heads'
    channels, (heads, head_dim)."""
    key_norm: Tensor | None = None
    """The same for keys."""
    norm_eps: float = 1e-6
    """Added to the mean square in both norms."""
    norm_across_heads: bool = False
    """Whether both norms take the mean square of all heads' channels of a token together, as Wan's
    do."""
    norm_text: bool = True
    """Whether both norms are of text tokens too; False takes these normalised, for models whose
    text has weights of its own."""

    @property
    def rotation(self) -> RotaryEmbedding | None:
        """`rotary` with tables (batch or 1, tokens, heads or 1, P)."""
        if self.rotary is None:
            return None
        if isinstance(self.rotary, RotaryEmbedding):
            return self.rotary.by_token
        return RotaryEmbedding(*self.rotary).by_token

    def of_heads(self, heads: slice) -> AttentionParameters:
        """The same of some heads; a norm across heads takes the mean square of these alone."""
        by_head = ["summary_queries", "gains"]
        if self.norm_across_heads:
            by_head += ["query_norm", "key_norm"]
        changed: dict[str, Any] = {
            name: getattr(self, name)[heads] for name in by_head if getattr(self, name) is not None
        }
        if self.summary_offsets is not None:
            changed["summary_offsets"] = self.summary_offsets[..., heads, :]
        if self.rotation is not None:
            changed["rotary"] = self.rotation.of_heads(heads)
        return replace(self, **changed)


@dataclass(frozen=True, eq=False)
class BranchGates:
    """Gates that add a LOW branch to the own band of every head.

    A video token of a head gets (1 + g[0]) * own + g[1] * low, with g = by_token + by_sample. Gates
    of zero leave the own band as it is. Text queries see everything exactly in both branches, so
    gates don't reach them.
    """

    by_token: Tensor | None = None
    """Of every video token in the order of the call, (batch, video tokens, 2, heads)."""
    by_sample: Tensor | None = None
    """Of every sample, (batch, 2, heads)."""

    @property
    def both(self) -> tuple[Tensor | None, Tensor | None]:
        """by_token and by_sample."""
        return self.by_token, self.by_sample

    def of(self, samples: list[int]) -> BranchGates:
        """The gates of some samples, by their indices."""
        pick = (None if x is None else x[samples] for x in (self.by_token, self.by_sample))
        return BranchGates(*pick)

    def of_heads(self, heads: slice) -> BranchGates:
        """The gates of some heads."""
        return BranchGates(*(None if x is None else x[..., heads] for x in self.both))


@dataclass(frozen=True, eq=False)
class KnownBands:
    """The band of every head on the device, with what the host knows of them: launches for other
    bands are left out, and nothing is read back.

    Raises ValueError where the bands are on the host and one of them is not among `present`.
    """

    bands: Tensor
    """Whole numbers (batch, heads)."""
    present: tuple[int, ...]
    """Every `Band` that there may be. That it is true is up to who makes the record: a head of
    another band gets any numbers on a GPU."""

    def __post_init__(self) -> None:
        if not on_host(self.bands):
            return
        others = sorted(set(self.bands.flatten().tolist()) - set(self.present))
        if others:
            raise ValueError(
                f"present is {self.present}, and bands hold {others}; every band of a head is to "
                "be among them: name it, or pass the tensor alone"
            )


LEARNED = ("summary_queries", "summary_offsets", "gains", "query_norm", "key_norm")
"""Fields of `AttentionParameters` in the order in which operations take them, which the rotary
tables follow."""


def operands(
    parameters: AttentionParameters | None, low_branch: BranchGates | None
) -> dict[str, Any]:
    """What an operation of torch takes of both, which are no tensors themselves, by name."""
    given = parameters or AttentionParameters()
    gates = low_branch or BranchGates()
    rotation = given.rotation
    return {
        **{name: getattr(given, name) for name in LEARNED},
        "by_token": gates.by_token,
        "by_sample": gates.by_sample,
        "cos": None if rotation is None else rotation.cos,
        "sin": None if rotation is None else rotation.sin,
        "eps": given.norm_eps,
        "pairs": "interleaved" if rotation is None else rotation.pairs,
        "across_heads": given.norm_across_heads,
        "norm_text": given.norm_text,
    }


def parameters_of(inputs: Any) -> AttentionParameters:
    """What `operands` took apart, from a record with these names."""
    rotary = None
    if inputs.cos is not None and inputs.sin is not None:
        rotary = RotaryEmbedding(inputs.cos, inputs.sin, inputs.pairs)
    return AttentionParameters(
        **{name: getattr(inputs, name) for name in LEARNED},
        rotary=rotary,
        norm_eps=inputs.eps,
        norm_across_heads=inputs.across_heads,
        norm_text=inputs.norm_text,
    )


def gates_of(inputs: Any) -> BranchGates | None:
    """The LOW branch that `operands` took apart; None for none."""
    if inputs.by_token is None and inputs.by_sample is None:
        return None
    return BranchGates(inputs.by_token, inputs.by_sample)
