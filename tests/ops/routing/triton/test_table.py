"""Bands of a table by timestep in one launch, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from freqformer.routing.table import bands_at

triton = pytest.importorskip("triton")
if not triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET=1 is not set: kernels would need a GPU", allow_module_level=True)

from tests.support.numerics import nan_filled_allocations  # noqa: E402

from freqformer.ops.routing.triton import table  # noqa: E402


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("buckets", "heads"), [(1, 3), (7, 24), (10, 1)])
def test_it_finds_what_pytorch_finds(buckets: int, heads: int, dtype: torch.dtype) -> None:
    bands = torch.randint(0, 4, (buckets, heads))
    edges = torch.arange(buckets + 1) / buckets
    near = torch.cat([edges, edges.nextafter(torch.tensor(0.0)), edges.nextafter(torch.ones(1))])
    timestep = near.clamp(0, 1).to(dtype)
    with nan_filled_allocations():
        found = table.look_up(bands, timestep)
    assert found.dtype == torch.int64
    assert torch.equal(found, bands_at(bands, timestep))


def test_strides() -> None:
    bands, timestep = torch.randint(0, 4, (24, 5)).T, torch.tensor([0.1, 0.9, 0.5])
    for given in (timestep, timestep[:1].expand(3), timestep[::2]):
        assert torch.equal(table.look_up(bands, given), bands_at(bands, given))
