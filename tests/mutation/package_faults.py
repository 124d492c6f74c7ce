"""Faults outside the attention's kernels: what ranks exchange, learned summaries, norms and rotary
embeddings of other models, bands of tables, conversion, the preset.

They are of the kinds that leave shapes as they are and numbers wrong: heads, samples, tiles and
ranks mixed up, a rescaling or a normaliser left out, text counted as video, an end off by one.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.mutation.faults import Fault

SHARED = "tests/distributed/test_shared_video.py"
HEADS = "tests/distributed/test_heads.py"
QUERY_KEY = "tests/ops/prologue/triton/test_query_key.py"
TABLE = "tests/ops/routing/triton/test_table.py"
PLUGIN_TABLES = "tests/integrations/test_tables.py"
STEPS = "tests/integrations/test_steps.py"
CONVERTED = "tests/integrations/converted/test_learned.py"
PRESET = "tests/training_free/test_preset.py"

EXCHANGE = "distributed/exchange.py"
EXCHANGED = "attention/exchanged.py"
POOLING = "ops/prologue/triton/pooling_kernel.py"
JOIN = "ops/prologue/triton/summary_kernel.py"
NORMS = "ops/prologue/triton/norm_kernels.py"
TOKENS = "ops/prologue/triton/tokens.py"
LOOK_UP = "ops/routing/triton/table.py"
LAYER_BANDS = "integrations/diffusers/layer_bands.py"


@dataclass(frozen=True)
class PackageFault(Fault):
    """One change to any file of the package, `file` being its path under src/freqformer."""

    @property
    def path(self) -> str:
        return f"src/freqformer/{self.file}"


_DISTRIBUTED = (
    PackageFault(
        "messages are put together one after another, not rank by rank",
        EXCHANGE,
        "[piece for rank in zip(*split, strict=True) for piece in rank]",
        "[piece for message in split for piece in message]",
        SHARED,
    ),
    PackageFault(
        "outputs come back as heads are numbered, not as they were dealt",
        EXCHANGE,
        "    order = route.order\n    leaving",
        "    order = route.order.sort().values\n    leaving",
        SHARED,
    ),
    PackageFault(
        "products leave as heads are numbered, not as they were dealt",
        EXCHANGED,
        "    order = route.order\n    made",
        "    order = route.order.sort().values\n    made",
        SHARED,
    ),
    PackageFault(
        "gradients of weights stay in the order in which heads were dealt",
        EXCHANGED,
        "torch.empty_like(by_head).index_copy_(1, order, by_head).flatten(0, 2)",
        "by_head.flatten(0, 2)",
        SHARED,
    ),
    PackageFault(
        "every rank takes the first one's part of a gathered gradient",
        "distributed/tokens.py",
        "ctx.start = sum(shares[: context.rank])",
        "ctx.start = 0",
        SHARED,
    ),
    PackageFault(
        "a loss that all ranks take alike counts once for each",
        "distributed/context.py",
        "return grads[0] / ctx.ranks, None",
        "return grads[0], None",
        SHARED,
    ),
    PackageFault(
        "slots behind a short tile's end count in a router's sample",
        "distributed/sample.py",
        "slots.masked_fill(empty.view(-1, *(1 for _ in slots.shape[2:])), 0)",
        "slots",
        SHARED,
    ),
    PackageFault(
        "heads are dealt forth and never back",
        "distributed/heads.py",
        "place // ranks % 2 == 0",
        "place // ranks % 2 >= 0",
        HEADS,
    ),
    PackageFault(
        "a head costs what it does in the first sample",
        "distributed/heads.py",
        "costs[bands.long()].sum(0)",
        "costs[bands.long()][0]",
        HEADS,
    ),
)
_PROLOGUE = (
    PackageFault(
        "slots behind a short tile's end are pooled",
        POOLING,
        '    scores = tl.where(chunk.live, scores, float("-inf"))\n',
        "",
        QUERY_KEY,
    ),
    PackageFault(
        "tiles of a cell count alike, whatever their largest scores",
        JOIN,
        "l_i = l_i * decay + tl.sum(weights * weight, 0)",
        "l_i = l_i * decay + tl.sum(weights, 0)",
        QUERY_KEY,
    ),
    PackageFault(
        "a norm across heads divides by one head's channels",
        NORMS,
        "tl.rsqrt(total / (heads * D) + eps)",
        "tl.rsqrt(total / D + eps)",
        QUERY_KEY,
    ),
    PackageFault(
        "what a norm across heads takes off has its scale once",
        NORMS,
        "factor = scale * scale * total",
        "factor = scale * total",
        QUERY_KEY,
    ),
    PackageFault(
        "every head is normalised by the first one's weight",
        TOKENS,
        "weight = x.norm + head * x.norm_head",
        "weight = x.norm",
        QUERY_KEY,
    ),
    PackageFault(
        "pairs of half a head's channels are half a head apart",
        TOKENS,
        "tl.where(turned, pair + x.HALF, pair + D // 2)",
        "pair + D // 2",
        QUERY_KEY,
    ),
    PackageFault(
        "every head is turned by the first one's angles",
        TOKENS,
        " * rotary.sample + head.to(tl.int64) * rotary.head",
        " * rotary.sample",
        QUERY_KEY,
    ),
)
_TABLES = (
    PackageFault(
        "the last bucket of a table is met at noise alone",
        LOOK_UP,
        ".to(tl.float64) * buckets)",
        ".to(tl.float64) * (buckets - 1))",
        TABLE,
    ),
    PackageFault(
        "rows of a table are as wide as a block",
        LOOK_UP,
        "table + place * heads + head",
        "table + place * HEADS + head",
        TABLE,
    ),
    PackageFault(
        "all samples of a batch have the first one's bands",
        LAYER_BANDS,
        "else self._bands[buckets]",
        "else self._bands[buckets[:1] * len(buckets)]",
        PLUGIN_TABLES,
    ),
    PackageFault(
        "lists of MID heads don't grow with the video",
        LAYER_BANDS,
        "round(config.mid_tiles * own / tiles)",
        "config.mid_tiles",
        PLUGIN_TABLES,
    ),
)
_TRAINED_MODELS = (
    PackageFault(
        "gates of a converted layer read what lies before the video",
        "integrations/diffusers/processor.py",
        "video = hidden_states[:, first : first + share.video.grid.num_tokens]",
        "video = hidden_states[:, : share.video.grid.num_tokens]",
        CONVERTED,
    ),
    PackageFault(
        "gates of heads and of branches exchanged",
        "integrations/diffusers/converted/learned.py",
        ".unflatten(2, (2, self.heads))",
        ".unflatten(2, (self.heads, 2)).mT",
        CONVERTED,
    ),
    PackageFault(
        "the router of a converted layer weighs heads as if they were LOW",
        "integrations/diffusers/converted/learned.py",
        "branch_weights(logits, (OWN,)",
        "branch_weights(logits, (Band.LOW.value,)",
        CONVERTED,
    ),
    PackageFault(
        "a step counts itself among those before it",
        "integrations/diffusers/steps.py",
        "(ahead > ROUNDING)",
        "(ahead > -ROUNDING)",
        STEPS,
    ),
    PackageFault(
        "the preset's density forgets the text",
        "training_free/preset.py",
        "return band_density(grid, config, num_text_tokens, (Band.MID,))",
        "return band_density(grid, config, 0, (Band.MID,))",
        PRESET,
    ),
)
PACKAGE_FAULTS = (*_DISTRIBUTED, *_PROLOGUE, *_TABLES, *_TRAINED_MODELS)
