"""The router's two launches in Triton's interpreter: the reference's statistics, the network's
logits, and their choice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from freqformer.attention import FreqAttention
from freqformer.config import FreqFormerConfig, Routing
from freqformer.grid import Grid, tile_layout
from freqformer.routing import RoutingNetwork, branch_weights
from freqformer.routing.statistics import STATISTIC_TILES, read_sample

triton = pytest.importorskip("triton")
if not triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET=1 is not set: kernels would need a GPU", allow_module_level=True)

from tests.support.interpreter import patch_language_once  # noqa: E402
from tests.support.numerics import nan_filled_allocations  # noqa: E402

from freqformer.ops.routing import reference  # noqa: E402
from freqformer.ops.routing.tables import sample_tables  # noqa: E402
from freqformer.ops.routing.triton import launch  # noqa: E402

pytestmark = [
    # The interpreter's own: it turns arrays of one element into loop bounds.
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
    # A LOW row has fewer queries than tokens. What is behind them is computed like the rest, and
    # never stored.
    pytest.mark.filterwarnings(
        "ignore:(All-NaN slice|invalid value|overflow) encountered:RuntimeWarning"
    ),
]
CONFIG = FreqFormerConfig(tile=(2, 3, 4), compression=8)
RAGGED = Grid(3, 4, 7)
HEADS, HEAD_DIM, EPS = 3, 16, 1e-6


@pytest.fixture(autouse=True, scope="module")
def _fast_interpreter() -> None:
    patch_language_once()


def make_features(
    grid: Grid,
    dtype: torch.dtype = torch.float32,
    hidden: torch.dtype | None = None,
    head_dim: int = HEAD_DIM,
) -> reference.Features:
    query, key = torch.randn(2, 2, grid.num_tokens, HEADS, head_dim).to(dtype)
    # A constant and outlier channels, as real activations have.
    states = torch.randn(2, grid.num_tokens, HEADS * head_dim) + 3
    states[..., ::7] *= 30
    return query, key, states.to(hidden or dtype)


def make_norms(head_dim: int = HEAD_DIM) -> reference.Norms:
    return torch.rand(head_dim) + 0.5, torch.rand(head_dim) + 0.5


def check_score(
    features: reference.Features, norms: reference.Norms, grid: Grid, config: FreqFormerConfig
) -> None:
    """Statistics within float32 rounding, logits too, and the choice by them."""
    network, timestep = RoutingNetwork(HEADS, prior="noise_level"), torch.rand(2)
    call = (features, norms, EPS, grid, config, "raster")
    expected = reference.statistics(*call)
    with nan_filled_allocations():
        statistics = launch.statistics(*call)
        logits, bands = launch.score(network, timestep, call)
    torch.testing.assert_close(statistics, expected, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(logits, network(expected, timestep), rtol=1e-5, atol=1e-5)
    assert bands.dtype == torch.int64
    assert torch.equal(bands, logits.argmax(-1))


@pytest.mark.parametrize("hidden", [None, torch.float32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_any_dtype(dtype: torch.dtype, hidden: torch.dtype | None) -> None:
    check_score(make_features(RAGGED, dtype, hidden), make_norms(), RAGGED, CONFIG)


@pytest.mark.parametrize("head_dim", [6, 24, 40])
def test_any_head_dim(head_dim: int) -> None:
    features = make_features(RAGGED, torch.bfloat16, head_dim=head_dim)
    check_score(features, make_norms(head_dim), RAGGED, CONFIG)


@pytest.mark.parametrize(
    "grid", [Grid(1, 1, 1), Grid(1, 9, 11), Grid(7, 2, 2), Grid(5, 7, 13)], ids=str
)
def test_any_grid(grid: Grid) -> None:
    check_score(make_features(grid), (None, None), grid, FreqFormerConfig())


@pytest.mark.parametrize("tile", [(1, 2, 4), (4, 1, 1)])
def test_boxes_across_tiles(tile: tuple[int, int, int]) -> None:
    grid = Grid(3, 2, 7)
    check_score(make_features(grid), make_norms(), grid, FreqFormerConfig(tile=tile))


@pytest.mark.parametrize("grid", [RAGGED, Grid(1, 9, 11), Grid(5, 7, 13)], ids=str)
def test_a_sample_alone_gives_the_same_bits(grid: Grid) -> None:
    """Ranks that share a video gather its sample, and must decide alike on any number of them."""
    features, norms = make_features(grid), make_norms()
    query, key, hidden = (
        read_sample(x, grid, CONFIG, "tile").flatten(1, 2).contiguous() for x in features
    )
    for statistics in (launch.statistics, reference.statistics):
        whole = statistics(features, norms, EPS, grid, CONFIG, "tile")
        sampled = statistics((query, key, hidden), norms, EPS, grid, CONFIG, "sample")
        assert torch.equal(whole, sampled)


def test_logits_are_near_float64_where_a_band_is_nearly_empty() -> None:
    # Constant queries: what leaks from the low band into the others would show in their logarithm.
    grid = Grid(4, 8, 8)
    query, key, hidden = make_features(grid, torch.bfloat16)
    query = query[:, :1].expand_as(query) * 4
    call = ((query, key, hidden), make_norms(), EPS, grid, FreqFormerConfig(), "raster")
    torch.testing.assert_close(
        launch.statistics(*call), reference.statistics(*call), rtol=1e-4, atol=1e-4
    )


def test_more_tiles_than_the_sample_has() -> None:
    grid = Grid(5, 9, 13)
    assert tile_layout(grid, CONFIG.tile).num_tiles > STATISTIC_TILES
    features, norms = make_features(grid), make_norms()
    expected = reference.statistics(features, norms, EPS, grid, CONFIG, "raster")
    torch.testing.assert_close(
        launch.statistics(features, norms, EPS, grid, CONFIG, "raster"),
        expected,
        rtol=1e-4,
        atol=2e-5,
    )


def test_tile_order_and_strides() -> None:
    features, norms = make_features(RAGGED), make_norms()
    wanted = launch.statistics(features, norms, EPS, RAGGED, CONFIG, "raster")
    index = tile_layout(RAGGED, CONFIG.tile).raster_to_tile
    tiled = tuple(x[:, index] for x in features)
    assert torch.equal(launch.statistics(tiled, norms, EPS, RAGGED, CONFIG, "tile"), wanted)
    packed = torch.cat([x.flatten(2) for x in features], -1).split(HEADS * HEAD_DIM, -1)
    query, key = (x.unflatten(2, (HEADS, -1)) for x in packed[:2])
    assert torch.equal(
        launch.statistics((query, key, packed[2]), norms, EPS, RAGGED, CONFIG, "raster"), wanted
    )
    spread = tuple(torch.stack([x, x], -1)[..., 0] for x in features)
    assert torch.equal(launch.statistics(spread, norms, EPS, RAGGED, CONFIG, "raster"), wanted)


def test_a_sample_alone_has_the_same_bits() -> None:
    features, norms, network = make_features(RAGGED), make_norms(), RoutingNetwork(HEADS)
    timestep = torch.rand(2)
    logits, bands = launch.score(
        network, timestep, (features, norms, EPS, RAGGED, CONFIG, "raster")
    )
    alone = tuple(x[1:] for x in features)
    again = launch.score(network, timestep[1:], (alone, norms, EPS, RAGGED, CONFIG, "raster"))
    assert torch.equal(again[0], logits[1:])
    assert torch.equal(again[1], bands[1:])


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("prior", ["noise_level", "none"])
@pytest.mark.parametrize("hidden", [72, 20])
def test_any_network_and_timestep(prior: str, hidden: int, statistics: bool) -> None:
    options = {"prior": prior, "initial": [2, 0, 1], "statistics": statistics}
    network = RoutingNetwork(HEADS, hidden=hidden, **options).bfloat16()  # type: ignore[arg-type]
    with torch.no_grad():
        network.head_bias.add_(torch.randn_like(network.head_bias))
    call = (
        (make_features(RAGGED), (None, None), EPS, RAGGED, CONFIG, "raster") if statistics else None
    )
    given = None if call is None else reference.statistics(*call)
    for timestep in (
        torch.tensor([0.0, 1.0]),
        torch.tensor([0.37]).expand(2),
        torch.rand(2, dtype=torch.float64),
    ):
        with nan_filled_allocations():
            logits, bands = launch.score(network, timestep, call)
        torch.testing.assert_close(logits, network(given, timestep), rtol=1e-5, atol=2e-5)
        assert torch.equal(bands, logits.argmax(-1))


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("own", [(2, 0, 1), (0, 0, 0), (2, 2, 2)])
def test_weights_of_two_branches_in_the_same_launches(
    own: tuple[int, ...], statistics: bool
) -> None:
    network = RoutingNetwork(HEADS, prior="noise_level", statistics=statistics)
    call = (make_features(RAGGED), (None, None), EPS, RAGGED, CONFIG, "raster")
    given, timestep = call if statistics else None, torch.rand(2)
    with nan_filled_allocations():
        logits, weights = launch.weigh(network, timestep, given, torch.tensor(own))
    assert torch.equal(logits, launch.score(network, timestep, given)[0])
    assert torch.equal(weights, branch_weights(logits, own))


@pytest.mark.parametrize("routing", ["hard", "soft", "timestep"])
def test_a_layer_scores_its_heads_alike_with_and_without_the_launches(routing: Routing) -> None:
    grid = Grid(2, 4, 3)
    config = FreqFormerConfig(tile=(2, 2, 3), mid_tiles=2, window=(1, 1, 1), summary_tokens=2)
    layer = FreqAttention(HEADS * HEAD_DIM, HEADS, replace(config, routing=routing))
    hidden, timestep = torch.randn(1, grid.num_tokens, HEADS * HEAD_DIM), torch.tensor([0.9])
    layer(hidden, grid, timestep, impl="eager")
    expected, allocation = layer.router_logits, layer.allocation_used
    assert isinstance(expected, Tensor)
    layer(hidden, grid, timestep, impl="triton")
    learned = layer.router_logits
    with torch.no_grad():
        layer(hidden, grid, timestep, impl="triton")
    for logits in (learned, layer.router_logits):
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert learned is not None
    assert learned.requires_grad
    assert torch.equal(layer.allocation_used, allocation)


def test_an_input_of_another_width_is_refused() -> None:
    query, key, hidden = make_features(RAGGED)
    with pytest.raises(ValueError, match="96 channels; 3 heads of 16"):
        launch.statistics(
            (query, key, hidden.repeat(1, 1, 2)), make_norms(), EPS, RAGGED, CONFIG, "raster"
        )


def test_operator_checks() -> None:
    grid, cpu = Grid(2, 3, 5), torch.device("cpu")
    features, network = make_features(grid), RoutingNetwork(HEADS)
    tables = sample_tables(grid, CONFIG, "raster", cpu, (torch.float32, torch.float32))
    sums = (*features, *make_norms(), *tables, EPS)
    weights = [x.detach() for x in network.parameters()]
    scores = (
        torch.ops.freqformer.sum_tiles(*sums),
        torch.rand(2),
        weights,
        0.75,
        torch.tensor([2, 0, 1]),
    )
    for name, arguments in (("sum_tiles", sums), ("score_heads", scores)):
        operation = getattr(torch.ops.freqformer, name).default
        checks = torch.library.opcheck(
            operation, arguments, test_utils=("test_schema", "test_faketensor")
        )
        assert set(checks.values()) == {"SUCCESS"}
    weights = [x.detach() for x in RoutingNetwork(HEADS, statistics=False).parameters()]
    operation = torch.ops.freqformer.score_heads.default
    checks = torch.library.opcheck(
        operation,
        (None, torch.rand(2), weights, 0.0, None),
        test_utils=("test_schema", "test_faketensor"),
    )
    assert set(checks.values()) == {"SUCCESS"}


def test_weights_are_taken_where_hooks_bring_them() -> None:
    accelerate = pytest.importorskip("accelerate")
    grid, config = (
        Grid(2, 4, 3),
        FreqFormerConfig(tile=(2, 2, 3), window=(1, 1, 1), summary_tokens=0),
    )
    layer = FreqAttention(HEADS * HEAD_DIM, HEADS, config).eval()
    hidden, timestep = torch.randn(1, grid.num_tokens, HEADS * HEAD_DIM), torch.tensor([0.9])
    with torch.no_grad():
        expected = layer(hidden, grid, timestep, impl="triton")
        accelerate.cpu_offload(layer, execution_device=torch.device("cpu"))
        assert torch.equal(layer(hidden, grid, timestep, impl="triton"), expected)
