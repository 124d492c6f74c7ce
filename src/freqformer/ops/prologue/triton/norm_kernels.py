"""Triton kernels of a norm across heads: what no program of one head can know.

`norm_launch.py` and `launch_backward.py` hold the host side, `arguments.py` the shape legend.
"""

from __future__ import annotations

import triton
import triton.language as tl

from freqformer.ops.jit import cast, real_channels
from freqformer.ops.prologue.triton.tokens import finite_where_masked, seen_text


@triton.jit
def _known(text_mask, sample, sizes, place, live):
    """Which tokens `place` of a sample may be seen: every one of the video, and of text what the
    mask shows."""
    seen = live
    if text_mask is not None:
        num_text = sizes.tokens - sizes.video
        text = live & (place >= sizes.video)
        shown = seen_text(text_mask, sample, num_text, place - sizes.video, text)
        seen = live & ((place < sizes.video) | shown)
    return seen


@triton.jit
def _load_head(x, sample, head, place, live, D: tl.constexpr, W: tl.constexpr):
    """Tokens of one head of `Tokens` x with their channels in the order of the call, (places,
    W)."""
    base = x.base + sample.to(tl.int64) * x.sample + head.to(tl.int64) * x.head
    entry = base + place.to(tl.int64)[:, None] * x.token + tl.arange(0, W)[None, :]
    return tl.load(entry, mask=real_channels(live, D, W), other=0.0)


@triton.jit
def _store_scales(
    x,
    scales,
    sample,
    place,
    live,
    seen,
    heads,
    eps,
    MASKED: tl.constexpr,
    D: tl.constexpr,
    W: tl.constexpr,
):
    """One over the root mean square of all heads' channels of the tokens `place` of `Tokens` x."""
    total = tl.zeros(place.shape, tl.float32)
    for head in range(heads):
        tokens = _load_head(x, sample, tl.cast(head, tl.int32), place, live, D, W)
        if MASKED:
            tokens = finite_where_masked(tokens, seen)
        wide = tokens.to(tl.float32)
        total += tl.sum(wide * wide, 1)
    tl.store(scales + place, tl.rsqrt(total / (heads * D) + eps), mask=live)


@triton.jit
def token_scales(
    qkv, scales, text_mask, eps, sizes, BLOCK: tl.constexpr, D: tl.constexpr, W: tl.constexpr
):
    """One over the root mean square of BLOCK queries, or of BLOCK keys, over all heads' channels.

    Launched over blocks of all samples, and over queries and keys.

    Args:
        qkv, sizes: see `arguments.py`.
        scales: float32 (2, B, N + X).
        text_mask: (B, X), 0 where a text token may not be seen; None where all may.
        eps: added to the mean square.
    """
    blocks = tl.cdiv(sizes.tokens, BLOCK)
    sample = tl.program_id(0) // blocks
    place = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    live = place < sizes.tokens
    seen = _known(text_mask, sample, sizes, place, live)
    samples = sizes.rows // sizes.heads
    row = (tl.program_id(1) * samples + sample).to(tl.int64) * sizes.tokens
    # What a masked token holds reaches nobody; but 0 times a scale of NaN would.
    MASKED: tl.constexpr = text_mask is not None
    if tl.program_id(1) == 0:
        if qkv.query.norm is not None:
            _store_scales(
                qkv.query, scales + row, sample, place, live, seen, sizes.heads, eps, MASKED, D, W
            )
    elif qkv.key.norm is not None:
        # Masked keys count as zeros.
        _store_scales(
            qkv.key, scales + row, sample, place, seen, seen, sizes.heads, eps, False, D, W
        )
        if MASKED:
            nothing = tl.zeros(place.shape, tl.float32)
            tl.store(scales + row + place, nothing, mask=live & ~seen)


@triton.jit
def _finish(
    x,
    grad,
    along,
    sample,
    place,
    live,
    seen,
    sizes,
    MASKED: tl.constexpr,
    D: tl.constexpr,
    W: tl.constexpr,
):
    """Take off the gradients (B, N + X, H, D) of tokens `place` of `Tokens` x what lies along
    them."""
    heads = sizes.heads
    total = tl.zeros(place.shape, tl.float32)
    # In the order of heads: the same bits every time.
    for head in range(heads):
        row = (sample * heads + head).to(tl.int64) * sizes.tokens
        total += tl.load(along + row + place, mask=live, other=0.0)
    scale = tl.load(x.scales + sample.to(tl.int64) * sizes.tokens + place, mask=live, other=0.0)
    # A token times its scale is the unit vector, and its gradient has the scale once more.
    factor = scale * scale * total / (heads * D)
    channel = tl.arange(0, W)
    for head in range(heads):
        tokens = _load_head(x, sample, tl.cast(head, tl.int32), place, live, D, W)
        if MASKED:
            tokens = finite_where_masked(tokens, seen)
        token = (sample.to(tl.int64) * sizes.tokens + place) * heads + head
        entry = grad + token[:, None] * D + channel[None, :]
        real = real_channels(live, D, W)
        g = tl.load(entry, mask=real, other=0.0).to(tl.float32)
        g -= tokens.to(tl.float32) * factor[:, None]
        tl.store(entry, cast(g, grad.dtype.element_ty), mask=real)


@triton.jit
def finish_norm_grads(
    qkv,
    outputs,
    text_mask,
    sizes,
    NORMS_TEXT: tl.constexpr,
    BLOCK: tl.constexpr,
    D: tl.constexpr,
    W: tl.constexpr,
):
    """End the gradients of BLOCK queries, or of BLOCK keys, before a norm across heads.

    Launched as `token_scales`.

    Args:
        qkv, sizes: see `arguments.py`; `qkv` with scales.
        outputs: `Outputs`; `along` is read, gradients of queries and keys are read and written.
        text_mask: (B, X), 0 where a text token may not be seen; None where all may.
        NORMS_TEXT: whether the norm is of text too.
    """
    blocks = tl.cdiv(sizes.tokens, BLOCK)
    sample = tl.program_id(0) // blocks
    place = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    live = place < sizes.tokens
    if not NORMS_TEXT:
        # Text that isn't normalised has its gradients already.
        live = place < sizes.video
    seen = _known(text_mask, sample, sizes, place, live)
    MASKED: tl.constexpr = text_mask is not None
    if tl.program_id(1) == 0:
        if qkv.query.norm is not None:
            _finish(
                qkv.query,
                outputs.query,
                outputs.along,
                sample,
                place,
                live,
                seen,
                sizes,
                MASKED,
                D,
                W,
            )
    elif qkv.key.norm is not None:
        keys = outputs.along + tl.cast(sizes.rows, tl.int64) * sizes.tokens
        # Nothing is taken off masked keys, which count as zeros.
        _finish(qkv.key, outputs.key, keys, sample, place, seen, seen, sizes, False, D, W)
