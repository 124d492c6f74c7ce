"""Makes the kept calls and takes what is kept of their results.

Inputs are drawn in float64 by name, so that they are the same whatever else is drawn, in whichever
order, and whichever release of torch draws. Shape legend: B batch, N video tokens, X text tokens, H
heads, D head_dim.
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import torch
from tests.agreement.cases import BATCH, CONFIG, HEAD_DIM, HEADS, LayerCase, OperationCase
from tests.agreement.words import attend_with_low, config_of, make_layer, router_logits
from torch import Tensor

from freqformer.attention import frequency_attention
from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid, tile_layout
from freqformer.ops.parameters import AttentionParameters
from freqformer.plan import Selection
from freqformer.routing import RoutingTable

VALUES, SUMS = 160, 4
"""Values of a result that are kept, and sums over all of it with random weights."""
DIM = HEADS * HEAD_DIM


def generator(name: str) -> torch.Generator:
    """The random numbers of what has this name."""
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def drawn(name: str, *shape: int) -> Tensor:
    """Standard normal float64 values."""
    return torch.randn(*shape, generator=generator(name), dtype=torch.float64)


def kept(name: str, result: Tensor) -> Tensor:
    """What is kept of a result: values at random places, and sums over all places with random
    weights, each as large as a value, so that a fault anywhere shows. float64 (VALUES + SUMS,) or
    shorter."""
    flat = result.detach().double().flatten()
    draw = generator(f"kept of {name}")
    places = torch.randperm(len(flat), generator=draw)[:VALUES]
    weights = torch.randn(SUMS, len(flat), generator=draw, dtype=torch.float64)
    return torch.cat([flat[places], weights @ flat / math.sqrt(len(flat))])


def run(case: OperationCase | LayerCase, impl: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """What is kept of the case's output and of every gradient, by name, and a mark of its
    inputs."""
    results = (
        _operation(case, impl, dtype)
        if isinstance(case, OperationCase)
        else (_layer(case, impl, dtype))
    )
    return {name: kept(f"{case.name}/{name}", result) for name, result in results.items()}


def _rotary(case: OperationCase | LayerCase, tokens: int) -> tuple[Tensor, Tensor]:
    angle = 3 * drawn(f"{case.name}/rotary", tokens, HEAD_DIM // 2)
    return angle.cos(), angle.sin()


def _learned(case: OperationCase) -> dict[str, Tensor]:
    """The parameters of a call by name."""
    offsets = (BATCH, HEADS, 3) if "offsets by sample" in case.learned else (HEADS, 3)
    sizes = {
        "summaries": {"summary_queries": (HEADS, 2, HEAD_DIM)},
        "offsets": {"summary_offsets": offsets},
        "norms": {"query_norm": (HEAD_DIM,), "key_norm": (HEAD_DIM,)},
    }
    groups = [named for group, named in sizes.items() if group in case.learned]
    if (config := CONFIG | case.config)["band_features"] == "gains":
        groups.append({"gains": (HEADS, 3)})
    if not config["summary_tokens"]:
        groups = [named for named in groups if "summary_queries" not in named]
    named = {name: size for group in groups for name, size in group.items()}
    return {name: _as_parameter(case.name, name, size) for name, size in named.items()}


def _as_parameter(case: str, name: str, size: tuple[int, ...]) -> Tensor:
    """A parameter about as large as in a trained layer."""
    draw = drawn(f"{case}/{name}", *size)
    last = name.rsplit(".", maxsplit=1)[-1]
    if last in ("query_norm", "key_norm", "gains"):
        return 1 + 0.2 * draw
    if last == "weight":
        return draw / math.sqrt(size[-1])
    return draw if last in ("summary_queries", "head_embedding") else 0.5 * draw


def _selection(case: OperationCase, grid: Grid, config: FreqFormerConfig) -> Selection | None:
    if not case.selection:
        return None
    tiles = tile_layout(grid, config.tile).num_tiles
    scores = drawn(f"{case.name}/selection", BATCH, HEADS, tiles, tiles)
    scores += 100 * torch.eye(tiles)  # every query sees its own tile
    return Selection(scores.argsort(-1, descending=True)[..., : case.selection])


def _operation(case: OperationCase, impl: str, dtype: torch.dtype) -> dict[str, Tensor]:
    grid, config = Grid(*case.grid), config_of(CONFIG | case.config)
    tokens, shape = grid.num_tokens, (BATCH, grid.num_tokens + case.text, HEADS, HEAD_DIM)
    given = {name: drawn(f"{case.name}/{name}", *shape) for name in ("query", "key", "value")}
    given |= _learned(case)
    sizes = {"by_token": (BATCH, tokens, 2, HEADS), "by_sample": (BATCH, 2, HEADS)}
    given |= {name: drawn(f"{case.name}/{name}", *sizes[name]) for name in case.gates}
    cos, sin = _rotary(case, tokens)
    if "rotary gradients" in case.learned:
        given |= {"cos": cos, "sin": sin}
    leaves = {name: x.to(dtype).requires_grad_() for name, x in given.items()}
    rotary = (leaves.get("cos", cos.to(dtype)), leaves.get("sin", sin.to(dtype)))
    turned = any(word.startswith("rotary") for word in case.learned)
    fields = AttentionParameters.__dataclass_fields__
    parameters = AttentionParameters(
        rotary=rotary if turned else None,
        **{name: x for name, x in leaves.items() if name in fields},
    )
    mask = drawn(f"{case.name}/mask", BATCH, case.text) > -0.5 if case.masked else None
    call: dict[str, Any] = {
        "grid": grid,
        "allocation": torch.tensor(case.allocation),
        "config": config,
        "num_text_tokens": case.text,
        "text_mask": mask,
        "parameters": parameters if case.learned or "gains" in leaves else None,
        "selection": _selection(case, grid, config),
        "token_order": case.token_order,
        "impl": impl,
    }
    tensors = (leaves["query"], leaves["key"], leaves["value"])
    if case.gates:
        gates = {name: leaves.get(name) for name in sizes}
        out = attend_with_low(tensors, **gates, **call)
    else:
        out = frequency_attention(*tensors, **call)
    return {"out": out, "inputs": torch.cat([x.flatten() for x in given.values()])} | _gradients(
        case.name, out, leaves
    )


def _gradients(case: str, out: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradient of every leaf; zeros where the output doesn't depend on it."""
    grad_out = drawn(f"{case}/grad_out", *out.shape).to(out.dtype)
    grads = torch.autograd.grad(out, list(leaves.values()), grad_out, allow_unused=True)
    return {
        f"gradient of {name}": torch.zeros_like(leaf) if grad is None else grad
        for (name, leaf), grad in zip(leaves.items(), grads, strict=True)
    }


def _layer(case: LayerCase, impl: str, dtype: torch.dtype) -> dict[str, Tensor]:
    grid, words = Grid(*case.grid), CONFIG | case.config
    layer: Any = make_layer(DIM, HEADS, words, case.layer).to(dtype)
    named = dict(layer.named_parameters())
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(_as_parameter(case.name, name, tuple(parameter.shape)))
    if case.router_training != "off":
        layer.set_router_training(case.router_training)
    if case.flop_budget is not None:
        layer.set_flop_budget(case.flop_budget)
    if case.table:
        bands = torch.tensor(case.table)[:, None]
        tiles = torch.full_like(bands, words["mid_tiles"])
        layer.set_routing_table(RoutingTable(bands, tiles, config_of(words, case.layer)))
    hidden = drawn(f"{case.name}/hidden", BATCH, grid.num_tokens, DIM)
    leaf = hidden.to(dtype).requires_grad_()
    cos, sin = _rotary(case, grid.num_tokens)
    out = layer(
        leaf,
        grid,
        torch.tensor([0.3, 0.9], dtype=torch.float64).to(dtype),
        (cos.to(dtype), sin.to(dtype)),
        token_order=case.token_order,
        impl=impl,
    )
    results = {"out": out, "inputs": hidden}
    logits = router_logits(layer)
    if logits is not None:
        results["logits"] = logits
    return results | _gradients(case.name, out, {"hidden_states": leaf} | named)
