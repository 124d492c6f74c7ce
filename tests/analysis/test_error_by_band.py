"""Error by band: the decomposition adds up and the bound holds, whatever the operator."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freqformer import AttentionParameters, Band, FreqFormerConfig, Grid, frequency_attention
from freqformer.analysis import error_by_band
from freqformer.bands import split_bands
from freqformer.grid import tile_layout
from freqformer.plan import Selection, build_plan

GRID = Grid(3, 9, 13)


def qkv(
    grid: Grid, heads: int, head_dim: int, seed: int = 0, scale: float = 1.0
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (1, grid.num_tokens, heads, head_dim)
    return [scale * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]


def learned(heads: int, head_dim: int) -> AttentionParameters:
    generator = torch.Generator().manual_seed(7)
    return AttentionParameters(
        summary_queries=torch.randn(heads, 2, head_dim, generator=generator, dtype=torch.float64),
        summary_offsets=torch.tensor([[0.0, -4.0, -4.0]], dtype=torch.float64).expand(heads, 3),
        gains=torch.rand(heads, 3, generator=generator, dtype=torch.float64) + 0.5,
    )


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 9)),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([0.3, 1.0, 4.0]),
    features=st.sampled_from(["full", "high_pass_values", "band_gains", "own_band"]),
    pattern=st.sampled_from(["topk", "axial", "radial"]),
    summaries=st.sampled_from([0, 4]),
)
def test_bound_holds(shape, seed, scale, features, pattern, summaries):
    """No query's error passes 2 (misplaced mass) max |v|, for every band, feature and pattern."""
    grid = Grid(*shape)
    config = FreqFormerConfig(
        tile=(2, 3, 3),
        band_features=features,
        mid_pattern=pattern,
        mid_tiles=2,
        window=(1, 2, 2),
        radial_radius=1,
        summary_tokens=summaries,
    )
    parameters = learned(4, 32) if features in ("band_gains", "own_band") else None
    found = error_by_band(
        *qkv(grid, 4, 32, seed, scale),
        grid=grid,
        allocation=[0, 1, 2, 3],
        config=config,
        parameters=parameters,
    )
    assert bool((found.error_norm <= found.bound * (1 + 1e-9) + 1e-10).all())
    assert float(found.error_norm[:, :, Band.DENSE].max()) <= 1e-12
    energy = found.error_norm.square().sum(1)
    torch.testing.assert_close(found.error_by_band.sum(-1), energy, rtol=1e-9, atol=1e-12)


def test_parts_add_up_to_the_output_and_the_error():
    """A low(V) + A mid(V) + A high(V) is the exact output, and the source errors add up to the
    error."""
    config = FreqFormerConfig(tile=(3, 3, 5), mid_tiles=3, window=(1, 2, 2))
    query, key, value = qkv(GRID, 3, 8)
    found = error_by_band(query, key, value, grid=GRID, allocation=[0, 1, 2], config=config)

    parts = [part.unflatten(2, (3, 8)) for part in split_bands(value.flatten(2), GRID, config)]
    exact = [_dense(query, key, part) for part in parts]
    torch.testing.assert_close(sum(exact), _dense(query, key, value), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        found.output_energy, torch.stack([x.square().sum((1, 3)) for x in exact], -1)
    )

    banded = [
        frequency_attention(query, key, part, grid=GRID, allocation=[0, 1, 2], config=config) - out
        for part, out in zip(parts, exact, strict=True)
    ]
    whole = frequency_attention(query, key, value, grid=GRID, allocation=[0, 1, 2], config=config)
    error = whole - _dense(query, key, value)
    torch.testing.assert_close(sum(banded), error, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        found.error_by_source, torch.stack([x.square().sum((1, 3)) for x in banded], -1)
    )
    torch.testing.assert_close(found.error_norm, error.norm(dim=-1))


@pytest.mark.parametrize("band", [Band.MID, Band.HIGH])
def test_misplaced_mass_is_the_missed_mass_where_keys_are_dropped(band):
    """Without summaries, MID and HIGH heads drop keys and renormalise: the mass is what they miss,
    counted by a mask."""
    config = FreqFormerConfig(tile=(3, 3, 5), mid_tiles=3, window=(1, 2, 2), summary_tokens=0)
    query, key, value = qkv(GRID, 1, 8, scale=1.5)
    layout = tile_layout(GRID, config.tile)
    chosen = torch.stack(
        [torch.tensor([i, (i + 2) % 9, (i + 5) % 9]).sort().values for i in range(layout.num_tiles)]
    )
    lists = (
        chosen if band == Band.MID else build_plan(GRID, config, num_heads=1, head_dim=8).high_lists
    )
    found = error_by_band(
        query,
        key,
        value,
        grid=GRID,
        allocation=[int(band)],
        config=config,
        selection=Selection(chosen[None, None]),
    )
    owner = torch.repeat_interleave(layout.counts)[layout.tile_to_raster]
    seen = _seen(lists, owner)
    weights = (query[0, :, 0] @ key[0, :, 0].T / 8**0.5).softmax(-1)
    missed = (weights * ~seen).sum(-1)
    torch.testing.assert_close(found.misplaced_mass[0, :, 0], missed)
    assert float(missed.min()) > 0.05
    assert 0.01 < float(found.tightness) <= 1


def _seen(lists: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
    table = torch.zeros(len(lists), len(lists), dtype=torch.bool).scatter_(1, lists, True)
    return table[owner][:, owner]


def _dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    weights = torch.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
    return torch.einsum("bhqk,bkhd->bqhd", weights.softmax(-1), value)


def test_the_bound_can_be_reached():
    """One exact query, values of opposite sign on seen and missed keys: the error is the bound."""
    grid = Grid(1, 1, 8)
    config = FreqFormerConfig(tile=(1, 1, 4), window=(1, 1, 1), summary_tokens=0)
    query = torch.zeros(1, 8, 1, 4, dtype=torch.float64)
    value = torch.zeros(1, 8, 1, 4, dtype=torch.float64)
    value[0, :4, 0, 0], value[0, 4:, 0, 0] = 1.0, -1.0
    found = error_by_band(query, query, value, grid=grid, allocation=[2], config=config)
    torch.testing.assert_close(found.misplaced_mass, torch.full_like(found.misplaced_mass, 0.5))
    torch.testing.assert_close(found.error_norm, found.bound)


def test_low_frequency_values_cost_low_heads_nothing():
    """Constant queries, keys and values: compression loses nothing, so the error is rounding."""
    one = torch.ones(1, GRID.num_tokens, 1, 8, dtype=torch.float64)
    found = error_by_band(one, one, one, grid=GRID, allocation=[0], config=FreqFormerConfig())
    assert float(found.relative_error) < 1e-12
    assert float(found.output_energy[..., 1:].max()) < 1e-20


def test_wrong_tokens_are_refused():
    query, key, value = qkv(GRID, 1, 8)
    with pytest.raises(ValueError, match="tokens"):
        error_by_band(
            query, key, value, grid=Grid(2, 2, 2), allocation=[0], config=FreqFormerConfig()
        )
