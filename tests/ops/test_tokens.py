"""Token order, rotary embedding and RMS norm."""

from __future__ import annotations

import pytest
import torch

from freqformer.grid import Grid, tile_layout
from freqformer.ops.tokens import reorder, rms_norm, rotate

LAYOUT = tile_layout(Grid(3, 5, 7), (2, 2, 4))


def test_reorder_goes_both_ways() -> None:
    x = torch.randn(2, 105, 3)
    tiled = reorder(x, LAYOUT, "raster", "tile")
    assert torch.equal(tiled, x[:, LAYOUT.raster_to_tile])
    assert torch.equal(reorder(tiled, LAYOUT, "tile", "raster"), x)
    assert reorder(x, LAYOUT, "tile", "tile") is x


def test_reorder_gradient() -> None:
    x = torch.randn(1, 105, 2, dtype=torch.float64, requires_grad=True)
    for orders in (("raster", "tile"), ("tile", "raster")):
        assert torch.autograd.gradcheck(lambda x, orders=orders: reorder(x, LAYOUT, *orders), x)


def test_rotation_turns_neighbouring_pairs() -> None:
    angle = torch.rand(105, 4, dtype=torch.float64) * 6
    x = torch.randn(2, 105, 8, dtype=torch.float64)
    turned = torch.view_as_complex(x.unflatten(-1, (4, 2))) * torch.polar(
        torch.ones_like(angle), angle
    )
    got = rotate(x, (angle.cos(), angle.sin()))
    assert (got - torch.view_as_real(turned).flatten(-2)).abs().max() <= 1e-15
    assert (rotate(got, (angle.cos(), -angle.sin())) - x).abs().max() <= 1e-14


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_rms_norm(dtype: torch.dtype) -> None:
    x, weight = torch.randn(2, 5, 3, 8).to(dtype), torch.randn(8)
    wide = x.double()
    wanted = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    got = rms_norm(x, weight, 1e-6)
    assert got.dtype == dtype
    # Computed in float32 at least, then rounded to the dtype.
    assert (got.double() - wanted).abs().max() <= 0.5 * torch.finfo(
        dtype
    ).eps * wanted.abs().max() + 1e-6
    assert rms_norm(x, None, 1e-6) is x
