"""Some outputs of a layer in float64, to check a fast result before it is timed."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from freqformer.config import Band
from freqformer.ops.merge import expand_low
from freqformer.ops.parameters import AttentionParameters
from freqformer.ops.prologue import BandInputs, prepare
from freqformer.ops.selection.reference import unseen_bias
from freqformer.ops.tokens import rms_norm
from freqformer.plan import AttentionPlan

ROWS = 2048
"""Low queries whose scores are held at once."""


def relative_errors(
    out: Tensor,
    tensors: tuple[Tensor, Tensor, Tensor],
    allocation: list[int],
    plan: AttentionPlan,
    parameters: AttentionParameters,
    mid_lists: Tensor,
    tiles: list[int],
) -> dict[str, float]:
    """|out - exact| / |exact| over the tokens of some tiles, by band, for the first head of each
    band.

    Args:
        out: the fast result (1, N, H, D) in raster order.
        tensors: query, key and value of the call.
        allocation: band of every head.
        plan, parameters: of the call.
        mid_lists: the tiles that MID heads chose, int (H, T, k).
        tiles: which tiles to check.
    """
    errors = {}
    index = torch.cat([torch.arange(*plan.layout.offsets[t : t + 2].tolist()) for t in tiles])
    raster = plan.layout.raster_to_tile[index].to(out.device)
    for band in (Band.LOW, Band.MID, Band.HIGH):
        head = allocation.index(band)
        inputs = _inputs(tensors, head, band, plan, parameters)
        if band == Band.LOW:
            exact = expand_low(
                _attend(inputs.query[0], inputs, inputs.extra_bias)[None], plan, "raster"
            )[0, raster]
        else:
            lists = mid_lists[head] if band == Band.MID else plan.high_lists.to(out.device)
            exact = torch.cat([_tile(inputs, tile, lists[tile].long(), plan) for tile in tiles])
        difference = out[0, raster, head].double() - exact
        errors[band.name.lower()] = float(difference.norm() / exact.norm())
    return errors


def _inputs(
    tensors: tuple[Tensor, Tensor, Tensor],
    head: int,
    band: Band,
    plan: AttentionPlan,
    parameters: AttentionParameters,
) -> BandInputs:
    query, key, value = (x[:, :, head].double() for x in tensors)
    query = rms_norm(query, parameters.query_norm, parameters.norm_eps)
    key = rms_norm(key, parameters.key_norm, parameters.norm_eps)
    rows = torch.tensor([head], device=query.device)
    rotation = parameters.rotation
    wide = parameters
    if rotation is not None:
        turned = replace(rotation, cos=rotation.cos.double(), sin=rotation.sin.double())
        wide = replace(parameters, rotary=turned)
    return prepare(
        query, key, value, band=band, plan=plan, rows=rows, parameters=wide, token_order="raster"
    )


def _tile(inputs: BandInputs, tile: int, listed: Tensor, plan: AttentionPlan) -> Tensor:
    """Outputs of the queries of one tile."""
    assert inputs.key is not None
    assert inputs.value is not None
    start, end = plan.layout.offsets[tile : tile + 2].tolist()
    places = torch.cat(
        [torch.arange(*plan.layout.offsets[t : t + 2].tolist()) for t in listed.tolist()]
    ).to(listed.device)
    bias = inputs.extra_bias[0].clone()
    cells = plan.cells.num_cells
    bias[:cells] += unseen_bias(listed[None, None], plan)[0, 0].double()
    bias = torch.cat([bias.new_zeros(len(places)), bias])
    keys = torch.cat([inputs.key[0, places], inputs.extra_key[0]])
    values = torch.cat([inputs.value[0, places], inputs.extra_value[0]])
    return _softmax(inputs.query[0, start:end], keys, values, bias)


def _attend(query: Tensor, inputs: BandInputs, bias: Tensor) -> Tensor:
    parts = query.split(ROWS)
    return torch.cat(
        [_softmax(part, inputs.extra_key[0], inputs.extra_value[0], bias[0]) for part in parts]
    )


def _softmax(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    scores = torch.addmm(bias.to(query), query, key.T, alpha=query.shape[-1] ** -0.5)
    return scores.softmax(-1) @ value
