"""The prologue in Triton's interpreter: every segment of every buffer against the reference of its
band."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from freqformer.buffers import PAD, selects_tiles
from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Grid

triton = pytest.importorskip("triton")
if not triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET=1 is not set: kernels would need a GPU", allow_module_level=True)

from tests.support.cases import Case, Inputs, make_inputs  # noqa: E402
from tests.support.interpreter import patch_language_once  # noqa: E402
from tests.support.numerics import check_errors, nan_filled_allocations  # noqa: E402

from freqformer.ops.parameters import AttentionParameters  # noqa: E402
from freqformer.ops.prologue import prepare  # noqa: E402
from freqformer.ops.prologue.tables import PrologueTables, prologue_tables  # noqa: E402
from freqformer.ops.prologue.triton.arguments import PreparedRows  # noqa: E402
from freqformer.ops.prologue.triton.launch import prepare_rows  # noqa: E402
from freqformer.ops.tokens import reorder, rms_norm, rotate  # noqa: E402

# The interpreter's own: it turns arrays of one element into loop bounds.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Conversion of an array with ndim:DeprecationWarning"
)
# Two low tokens of 16: with all 16 the other bands would be empty.
SMALL = FreqFormerConfig(tile=(2, 2, 4), compression=64, mid_tiles=2, summary_tokens=2)
LARGE = replace(SMALL, tile=(4, 4, 8), compression=32)
BLOCKS = torch.tensor([4, 9, 3, 9], dtype=torch.int32)
LEARNED = ("summaries", "offsets", "rotary", "norm")
EVERY_BAND = ((0, 1, 2, 3),)


@pytest.fixture(autouse=True, scope="module")
def _fast_interpreter() -> None:
    patch_language_once()


def small_case(**changes: Any) -> Case:
    told: dict[str, Any] = {
        "grid": Grid(3, 3, 7),
        "config": SMALL,
        "allocation": EVERY_BAND,
        "head_dim": 16,
    }
    return Case(**told | changes)


CASES = {
    "plain": small_case(),
    "raw": small_case(learned=LEARNED, num_text_tokens=3),
    "tile order": small_case(learned=LEARNED, token_order="tile"),
    "values": small_case(
        config=replace(SMALL, band_features="high_pass_values"), learned=LEARNED, num_text_tokens=2
    ),
    "gains": small_case(
        config=replace(SMALL, band_features="band_gains"), num_text_tokens=2, dtype=torch.float16
    ),
    "strict": small_case(
        config=replace(SMALL, band_features="own_band"),
        learned=("summaries", "rotary"),
        dtype=torch.float16,
    ),
    "by sample": small_case(allocation=((0, 1), (2, 0)), learned=("summaries",)),
    "one frame": small_case(
        grid=Grid(1, 5, 3), config=replace(SMALL, tile=None, compression=1), learned=LEARNED
    ),
    "fixed pattern, no summaries": small_case(
        config=replace(SMALL, mid_pattern="axial", summary_tokens=0)
    ),
    "bfloat16": small_case(
        grid=Grid(2, 3, 5), allocation=((0, 1, 2),), learned=LEARNED, dtype=torch.bfloat16
    ),
    # A program holds 32 or 64 of a tile's 128 tokens at once, and in float32 as many keys. Some
    # tiles end before the first chunk does.
    "large tiles": small_case(grid=Grid(4, 5, 9), config=LARGE, learned=LEARNED),
    "large tiles, bfloat16": small_case(
        grid=Grid(4, 5, 9),
        config=LARGE,
        allocation=((0, 1, 2),),
        learned=LEARNED,
        dtype=torch.bfloat16,
    ),
}


@dataclass(frozen=True, eq=False)
class Row:
    """One row of a call, normalised: query, key and value (1, N, D), and what its band is told."""

    video: list[Tensor]
    text: list[Tensor]
    band: Band
    head: int
    parameters: AttentionParameters

    def expected(self, case: Case, tables: PrologueTables) -> dict[str, Tensor]:
        """What must be in the buffers, by segment."""
        plan, keys = case.plan, tables.keys
        found: dict[str, Tensor] = {}
        for name, x in zip(("query text", "key text", "value text"), self.text, strict=True):
            found[name] = x[0]
        exact = self.exact(case)
        if self.band == Band.DENSE:
            return found | {"query": exact[0], "key": exact[1], "value": exact[2]}
        rows = torch.tensor([self.head])
        told: dict[str, Any] = {
            "band": self.band,
            "plan": plan,
            "rows": rows,
            "token_order": case.token_order,
        }
        inputs = prepare(*self.video, parameters=self.parameters, **told)
        at, low = 0, plan.num_low_tokens
        if self.band == Band.LOW:
            found |= {
                "low query": inputs.query[0],
                "low key": inputs.extra_key[0, :low],
                "low value": inputs.extra_value[0, :low],
            }
            at = low
            if case.num_text_tokens:
                found |= {"key": exact[1], "value": exact[2]}
        else:
            assert inputs.key is not None
            assert inputs.value is not None
            found |= {"query": inputs.query[0], "key": inputs.key[0], "value": inputs.value[0]}
            if keys.exact > 0:
                found |= {"key exact": exact[1], "value exact": exact[2]}
        for other, start in (
            (0, keys.low_summaries),
            (1, keys.mid_summaries),
            (2, keys.high_summaries),
        ):
            if start >= 0 and other != self.band:
                end = at + plan.cells.num_cells
                found |= {f"key of band {other}": inputs.extra_key[0, at:end]}
                found |= {f"value of band {other}": inputs.extra_value[0, at:end]}
                at = end
        assert at == inputs.extra_key.shape[1]
        if inputs.selection_means is not None and selects_tiles(case.plan):
            counts = plan.layout.counts[:, None]
            found |= {
                "query sums": inputs.selection_means[0][0] * counts,
                "key sums": inputs.selection_means[1][0] * counts,
            }
        return found

    def expected_low(self, case: Case, tables: PrologueTables) -> dict[str, Tensor]:
        """What a LOW branch adds: low tokens, and summaries of the bands that they see."""
        given = replace(self, band=Band.LOW).expected(case, tables)
        return {name: x for name, x in given.items() if name not in ("key", "value")}

    def exact(self, case: Case) -> list[Tensor]:
        turned = self.video[:2]
        if self.parameters.rotation is not None:
            tables = self.parameters.rotation.of_rows(torch.tensor([self.head]), case.num_heads)
            turned = [rotate(x, tables) for x in turned]
        return [
            reorder(x, case.plan.layout, case.token_order, "tile")[0]
            for x in (*turned, self.video[2])
        ]


def make_row(case: Case, inputs: Inputs, sample: int, head: int) -> Row:
    parameters = inputs.parameters or AttentionParameters()
    query = rms_norm(inputs.query, parameters.query_norm, parameters.norm_eps)
    key = rms_norm(inputs.key, parameters.key_norm, parameters.norm_eps)
    video, tensors = (
        case.grid.num_tokens,
        [x[sample : sample + 1, :, head] for x in (query, key, inputs.value)],
    )
    band = Band(case.allocation[sample][head])
    return Row(
        [x[:, :video] for x in tensors], [x[:, video:] for x in tensors], band, head, parameters
    )


def found(
    made: PreparedRows, row: int, names: list[str], case: Case, tables: PrologueTables
) -> dict[str, Tensor]:
    """The same segments of one row out of the buffers."""
    keys, video, text = tables.keys, case.grid.num_tokens, case.num_text_tokens
    low, cells = case.plan.num_low_tokens, case.plan.cells.num_cells
    places = {
        "query": (made.query, 0, video),
        "query text": (made.query, video, text),
        "low query": (made.query, video + text, low),
    }
    for name, buffer in (("key", made.key), ("value", made.value)):
        places |= {
            name: (buffer, 0, video),
            f"{name} text": (buffer, keys.text, text),
            f"low {name}": (buffer, keys.low, low),
            f"{name} exact": (buffer, keys.exact, video),
            f"{name} of band 0": (buffer, keys.low_summaries, cells),
            f"{name} of band 1": (buffer, keys.mid_summaries, cells),
            f"{name} of band 2": (buffer, keys.high_summaries, cells),
        }
    results = {
        name: buffer[row, start : start + length]
        for name, (buffer, start, length) in places.items()
    }
    for index, name in enumerate(("query sums", "key sums")):
        results[name] = made.sums[index, row]
    return {name: results[name] for name in names}


def check_zeros(made: PreparedRows, row: int, band: Band, case: Case, branch: bool) -> None:
    """Where a row has no queries, zeros lie as far as blocks of the queries before read on."""
    tokens = case.grid.num_tokens + case.num_text_tokens
    if band == Band.LOW:
        assert not made.query[row, : min(PAD, case.grid.num_tokens)].any()
    elif not branch:
        assert not made.query[row, tokens : tokens + PAD].any()


@pytest.mark.parametrize("branch", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_every_segment(name: str, branch: bool) -> None:
    """With a LOW branch every row has the segments of a LOW row in addition to its own."""
    case = CASES[name]
    inputs, wide = make_inputs(case), make_inputs(case).double()
    tables = prologue_tables(case.plan, torch.device("cpu"), case.dtype)
    tensors, allocation = (inputs.query, inputs.key, inputs.value), torch.tensor(case.allocation)
    with nan_filled_allocations():
        made = prepare_rows(
            tensors,
            allocation,
            tables,
            BLOCKS,
            parameters=inputs.parameters,
            token_order=case.token_order,
            low_branch=branch,
        )
    for sample, bands in enumerate(case.allocation):
        for head in range(len(bands)):
            peer = make_row(case, inputs, sample, head).expected(case, tables)
            exact = make_row(case, wide, sample, head).expected(case, tables)
            row = sample * len(bands) + head
            if branch:
                low = make_row(case, inputs, sample, head).expected_low(case, tables)
                peer |= low
                exact |= make_row(case, wide, sample, head).expected_low(case, tables)
            check_errors(found(made, row, list(exact), case, tables), peer, exact, case=(name, row))
            check_zeros(made, row, Band(bands[head]), case, branch)
            for start in tables.zeros.tolist():
                assert not made.key[row, start : start + 128].any()
                assert not made.value[row, start : start + 128].any()


def test_rows_are_ordered_by_descending_blocks_and_bands_are_cleaned() -> None:
    case = small_case(grid=Grid(1, 2, 3), allocation=((2, 1, 0, 3), (0, 1, 2, 3)))
    inputs = make_inputs(case)
    tables = prologue_tables(case.plan, torch.device("cpu"), case.dtype)
    allocation = torch.tensor([[2, 1, 0, 7], [0, -1, 2, 3]])
    tensors = (inputs.query, inputs.key, inputs.value)
    made = prepare_rows(tensors, allocation, tables, BLOCKS, parameters=None, token_order="raster")
    assert made.bands.tolist() == [2, 1, 0, 3, 0, 3, 2, 3]
    assert made.order.tolist() == [1, 3, 5, 7, 2, 4, 0, 6]


def test_an_allocation_shared_by_samples_has_stride_zero() -> None:
    case = small_case(grid=Grid(1, 2, 3), allocation=((0, 1), (0, 1)))
    inputs = make_inputs(case)
    tables = prologue_tables(case.plan, torch.device("cpu"), case.dtype)
    tensors = (inputs.query, inputs.key, inputs.value)
    for shared in (
        torch.tensor([0, 1]),
        torch.tensor([0, 1], dtype=torch.int32),
        torch.tensor([0, 1], dtype=torch.uint8),
    ):
        made = prepare_rows(
            tensors, shared.expand(2, 2), tables, BLOCKS, parameters=None, token_order="raster"
        )
        assert made.bands.tolist() == [0, 1, 0, 1]
