"""Random calls of `frequency_attention`: grids, bands, text, masks, dtypes, scales, and what is
learned.

Shape legend: B batch, N video tokens, X text tokens, H heads, D head_dim.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from freqformer.attention import frequency_attention
from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Grid
from freqformer.ops.parameters import AttentionParameters, BranchGates, Pairs, RotaryEmbedding
from freqformer.ops.prologue import prepare
from freqformer.ops.query_key import normalised
from freqformer.ops.tokens import TokenOrder
from freqformer.patterns import topk_tiles
from freqformer.plan import AttentionPlan, Selection, build_plan

PRIMES = (1, 2, 3, 5, 7, 11, 13)
PINNED_TILES = (None, (1, 2, 4), (2, 2, 4), (3, 2, 5), (1, 4, 4), (4, 4, 8))
LEARNED = ("summaries", "offsets", "rotary", "norm")
GATES = ("by_token", "by_sample")
OUTLIER_SCALE = 30.0
"""What a few channels are multiplied by, as in activations of trained models."""


@dataclass(frozen=True)
class Case:
    """One call; `make_inputs` draws its tensors."""

    grid: Grid
    config: FreqFormerConfig
    allocation: tuple[tuple[int, ...], ...]
    """Band of every (sample, head)."""
    head_dim: int
    dtype: torch.dtype = torch.float32
    num_text_tokens: int = 0
    mask: Literal["none", "random", "all"] = "none"
    """No text mask; a random one; or one that hides all text of the first sample."""
    learned: tuple[str, ...] = ()
    """Which parameters are given, of LEARNED or what `_parameters` names in addition; gains come
    with `band_features="band_gains"`."""
    gates: tuple[str, ...] = ()
    """Which gates of a LOW branch are given, of GATES."""
    outliers: bool = False
    token_order: TokenOrder = "raster"
    seed: int = 0

    @property
    def num_heads(self) -> int:
        return len(self.allocation[0])

    @property
    def plan(self) -> AttentionPlan:
        return build_plan(
            self.grid,
            self.config,
            num_heads=self.num_heads,
            head_dim=self.head_dim,
            num_text_tokens=self.num_text_tokens,
            learned_summaries="summaries" in self.learned,
        )


@dataclass(frozen=True, eq=False)
class Inputs:
    """Tensors of a call, and the output's gradient."""

    query: Tensor
    key: Tensor
    value: Tensor
    grad_out: Tensor
    text_mask: Tensor | None
    parameters: AttentionParameters | None
    low_branch: BranchGates | None = None

    def map(self, change: Any) -> Inputs:
        """The inputs with `change` made to every float tensor."""
        tensors = {
            name: change(getattr(self, name)) for name in ("query", "key", "value", "grad_out")
        }
        branch = None
        if self.low_branch is not None:
            branch = BranchGates(*(None if x is None else change(x) for x in self.low_branch.both))
        if self.parameters is None:
            return replace(self, **tensors, low_branch=branch)
        learned = {}
        for entry in fields(self.parameters):
            x = getattr(self.parameters, entry.name)
            if isinstance(x, tuple):
                learned[entry.name] = tuple(change(table) for table in x)
            elif isinstance(x, RotaryEmbedding):
                learned[entry.name] = replace(x, cos=change(x.cos), sin=change(x.sin))
            elif isinstance(x, Tensor):
                learned[entry.name] = change(x)
        parameters = replace(self.parameters, **learned)
        return replace(self, **tensors, parameters=parameters, low_branch=branch)

    def to(self, dtype: torch.dtype) -> Inputs:
        """Queries, keys, values and output gradient in another dtype; what is learned stays."""
        return replace(
            self,
            **{
                name: getattr(self, name).to(dtype)
                for name in ("query", "key", "value", "grad_out")
            },
        )

    def double(self) -> Inputs:
        """The same values in float64."""
        return self.map(lambda x: x.double())


def random_grid(rng: random.Random, max_tokens: int = 400) -> Grid:
    """A grid of primes, one frame, fewer tokens than a tile, or any extents."""
    while True:
        kind = rng.choice(("primes", "one frame", "tiny", "any", "long"))
        shape = {
            "primes": lambda: [rng.choice(PRIMES) for _ in range(3)],
            "one frame": lambda: [1, rng.randint(1, 24), rng.randint(1, 24)],
            "tiny": lambda: [rng.randint(1, 4) for _ in range(3)],
            "any": lambda: [rng.randint(1, 10) for _ in range(3)],
            "long": lambda: [rng.randint(8, 60), rng.randint(1, 4), rng.randint(1, 4)],
        }[kind]()
        if shape[0] * shape[1] * shape[2] <= max_tokens:
            return Grid(*shape)


def random_config(rng: random.Random) -> FreqFormerConfig:
    """Any setting of every field; small pinned tiles give small grids many tiles."""
    return FreqFormerConfig(
        tile=rng.choice(PINNED_TILES),
        compression=rng.choice((1, 4, 10.5, 16, 32, 64, 128)),
        mid_cutoff=rng.choice((0.25, 0.5, 0.8, 1)),
        band_features=rng.choice(("full", "full", "high_pass_values", "band_gains", "own_band")),
        mid_pattern=rng.choice(("topk", "topk", "axial", "radial")),
        mid_tiles=rng.choice((None, 1, 2, 3, 5, 16)),
        radial_radius=rng.choice((0, 1, 2, 4)),
        window=(rng.choice((1, 2, 3)), rng.choice((1, 2, 3)), rng.choice((1, 3, 4))),
        summary_tokens=rng.choice((0, 1, 4, 16, 256)),
        low_output=rng.choice(("interpolate", "interpolate", "inverse_dct")),
    )


def random_case(seed: int, *, max_tokens: int = 400, **fixed: Any) -> Case:
    """The case of a seed; `fixed` sets fields of `Case`."""
    rng = random.Random(seed)
    heads, batch = rng.randint(1, 4), rng.choice((1, 1, 2))
    only = rng.choice([None, None, None, *Band])
    bands = list(Band) if only is None else [only]
    allocation = tuple(tuple(int(rng.choice(bands)) for _ in range(heads)) for _ in range(batch))
    if rng.random() < 0.5:
        allocation = (allocation[0],) * batch
    text = rng.choice((0, 0, 1, 7, 130))
    drawn = {
        "grid": random_grid(rng, max_tokens),
        "config": random_config(rng),
        "allocation": allocation,
        "head_dim": rng.choice((64, 128, 64, 128, 8, 16, 5, 33)),
        "dtype": rng.choice((torch.float32, torch.float16, torch.bfloat16)),
        "num_text_tokens": text,
        "mask": rng.choice(("none", "random", "all")) if text else "none",
        "learned": tuple(name for name in LEARNED if rng.random() < 0.5),
        "outliers": rng.random() < 0.3,
        "token_order": rng.choice(("raster", "raster", "tile")),
        "seed": seed,
        "gates": rng.choice(((), (), GATES, GATES[:1], GATES[1:])),
    }
    case = Case(**{**drawn, **fixed})
    if case.head_dim % 2:
        case = replace(case, learned=tuple(name for name in case.learned if name != "rotary"))
    return case


def make_inputs(case: Case, device: str = "cpu") -> Inputs:
    """Draw the tensors of a case; unit scale, or a few channels of queries, keys and values x30."""
    generator = torch.Generator().manual_seed(case.seed)
    batch, heads, width = len(case.allocation), case.num_heads, case.head_dim

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    tokens = case.grid.num_tokens + case.num_text_tokens
    query, key, value, grad_out = (normal(batch, tokens, heads, width) for _ in range(4))
    if case.outliers:
        channels = torch.randperm(width, generator=generator)[: max(1, width // 64)]
        for x in (query, key, value):
            x[..., channels] *= OUTLIER_SCALE
    mask = None
    if case.mask != "none":
        mask = torch.rand(batch, case.num_text_tokens, generator=generator) < 0.6
        mask[0] &= case.mask != "all"
    query, key, value, grad_out = (x.to(case.dtype) for x in (query, key, value, grad_out))
    text_mask = None if mask is None else mask.to(device)
    parameters = _parameters(case, normal)
    inputs = Inputs(query, key, value, grad_out, text_mask, parameters, _gates(case, normal))
    return inputs.map(lambda x: x.to(device))


def _parameters(case: Case, normal: Any) -> AttentionParameters | None:
    heads, width, features = case.num_heads, case.head_dim, case.config.band_features
    batch = len(case.allocation)
    tokens = case.grid.num_tokens + case.num_text_tokens
    if not case.learned and features not in ("band_gains", "own_band"):
        return None
    given = {
        "summaries": lambda: {"summary_queries": normal(heads, 2, width)},
        "offsets": lambda: {
            "summary_offsets": normal(*[batch] * (batch > 1), heads, 3)
        },  # by sample where there are several
        "rotary": lambda: {"rotary": _rotary(normal(case.grid.num_tokens, width // 2) * 3)},
        "norm": lambda: {
            "query_norm": 1 + 0.3 * normal(width),
            "key_norm": 1 + 0.3 * normal(width),
        },
        "halved": lambda: {
            "rotary": _embedding(normal(case.grid.num_tokens, width // 2), "halved")
        },
        # Of every sample, head and text token, and of some channels alone; every angle twice.
        "packed": lambda: {"rotary": _repeated(normal(batch, tokens, heads, 3 * width // 8))},
        "halved, packed": lambda: {
            "rotary": _embedding(normal(1, tokens, 1, 3 * width // 8), "halved")
        },
        "norm across heads": lambda: {
            "query_norm": 1 + 0.3 * normal(heads, width),
            "key_norm": 1 + 0.3 * normal(heads, width),
            "norm_across_heads": True,
        },
        "normalised text": lambda: {"norm_text": False},
    }
    values = {name: x for part in case.learned for name, x in given[part]().items()}
    if features == "band_gains":
        values["gains"] = 1 + 0.5 * normal(heads, 3)
    return AttentionParameters(**values)


def _gates(case: Case, normal: Any) -> BranchGates | None:
    """Gates by token in the dtype of the call, as a linear layer gives them, and by sample in
    float32, as a router does."""
    if not case.gates:
        return None
    batch, heads = len(case.allocation), case.num_heads
    given = {
        "by_token": lambda: normal(batch, case.grid.num_tokens, 2, heads).to(case.dtype),
        "by_sample": lambda: normal(batch, 2, heads),
    }
    return BranchGates(**{name: given[name]() for name in case.gates})


def _rotary(angle: Tensor) -> tuple[Tensor, Tensor]:
    return angle.cos(), angle.sin()


def _embedding(angle: Tensor, pairs: Pairs) -> RotaryEmbedding:
    return RotaryEmbedding((3 * angle).cos(), (3 * angle).sin(), pairs)


def _repeated(angle: Tensor) -> RotaryEmbedding:
    """A view of tables that hold every angle twice, as models of neighbouring channels have
    them."""
    whole = _embedding(angle.repeat_interleave(2, -1), "interleaved")
    return replace(whole, cos=whole.cos[..., ::2], sin=whole.sin[..., ::2])


def select(case: Case, inputs: Inputs) -> Selection | None:
    """The float64 choice of tiles for every head, for all that are compared to share; None unless
    top-k."""
    if case.config.mid_pattern != "topk":
        return None
    exact, plan = inputs.double(), case.plan
    query, key, learned = exact.query, exact.key, exact.parameters
    if learned is not None:
        video = case.grid.num_tokens
        query = normalised(query, learned.query_norm, learned, video)
        key = normalised(key, learned.key_norm, learned, video)
    rows = [
        x.transpose(1, 2).flatten(0, 1)[:, : case.grid.num_tokens]
        for x in (query, key, exact.value)
    ]
    every = torch.arange(len(rows[0]), device=query.device)
    means = prepare(
        *rows,
        band=Band.MID,
        plan=plan,
        rows=every,
        parameters=learned,
        token_order=case.token_order,
    ).selection_means
    assert means is not None
    return Selection(
        topk_tiles(*means, plan.mid_capacity).unflatten(0, (-1, case.num_heads)).contiguous()
    )


def attend(case: Case, inputs: Inputs, **named: Any) -> Tensor:
    """The operation of a case; `named` are other arguments of it."""
    return frequency_attention(
        inputs.query,
        inputs.key,
        inputs.value,
        grid=case.grid,
        allocation=torch.tensor(case.allocation),
        config=case.config,
        num_text_tokens=case.num_text_tokens,
        text_mask=inputs.text_mask,
        parameters=inputs.parameters,
        low_branch=inputs.low_branch,
        token_order=case.token_order,
        **named,
    )


def run(
    case: Case,
    inputs: Inputs,
    impl: str,
    *,
    selection: Selection | None = None,
    gradients: bool = True,
) -> dict[str, Tensor]:
    """Output of the call, and gradients of everything that it takes: `out`, `grad_query`, ...,
    `grad_gains`, ..."""
    leaves: dict[str, Tensor] = {}

    def leaf(x: Tensor) -> Tensor:
        return x.detach().clone().requires_grad_(gradients)

    inputs = inputs.map(leaf)
    if inputs.parameters is not None and inputs.parameters.rotation is not None:
        # Rotary tables aren't learned, and the fused pipeline gives them no gradient.
        turn = inputs.parameters.rotation
        turn = replace(turn, cos=turn.cos.detach(), sin=turn.sin.detach())
        inputs = replace(inputs, parameters=replace(inputs.parameters, rotary=turn))
    leaves.update(query=inputs.query, key=inputs.key, value=inputs.value)
    for name in ("summary_queries", "summary_offsets", "gains", "query_norm", "key_norm"):
        x = getattr(inputs.parameters, name, None)
        if x is not None:
            leaves[name] = x
    for name in case.gates:
        leaves[name] = getattr(inputs.low_branch, name)
    out = attend(case, inputs, selection=selection, impl=impl)
    results = {"out": out.detach()}
    if gradients:
        grads = torch.autograd.grad(
            out, list(leaves.values()), inputs.grad_out.detach(), allow_unused=True
        )
        for (name, x), grad in zip(leaves.items(), grads, strict=True):
            results[f"grad_{name}"] = torch.zeros_like(x) if grad is None else grad
    return results
