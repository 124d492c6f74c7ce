"""Blocks of diffusers' transformers, of random weights at their real widths, with dense attention
and with frequency attention by the plug-in.

    PYTHONPATH=src:. python -m benchmarks.plugin_blocks [--case wan-14b-720p ...]
    [--rows thirds ...] [--compiled] [--output FOLDER]

A block's time is half of what three blocks take longer than one in a call of the transformer, so
that embeddings and the head don't count. Rows: `dense` is the untouched model; `own` the enabled
one in a step that stays dense; `preset-D` the preset at density D; `tiles-128-D` the same pattern
in tiles of up to 128 tokens; `thirds` a third of the heads LOW, MID and HIGH; `thirds-steps` the
same with norms and rotary embeddings as steps of PyTorch before the operation. Prints a table, and
writes plugin_blocks.json, or plugin_blocks_compiled.json, after every case; other cases that
stand there stay.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from diffusers.models.transformers.transformer_hunyuan_video15 import (
    HunyuanVideo15Transformer3DModel,
)
from diffusers.models.transformers.transformer_minimax_h3 import MiniMaxH3Transformer3DModel
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import record
from freqformer.config import Band, FreqFormerConfig, even_allocation
from freqformer.grid import Grid, choose_tile, tile_layout
from freqformer.integrations.diffusers import enable_frequency_attention
from freqformer.integrations.diffusers.calls import Share
from freqformer.integrations.diffusers.families import family_of
from freqformer.integrations.diffusers.processor import FrequencyProcessor
from freqformer.ops.parameters import AttentionParameters
from freqformer.ops.query_key import prepared
from freqformer.routing import RoutingTable
from freqformer.training_free.preset import SUMMARIES, mid_density

DENSITIES = (0.5, 0.2, 0.1)
FEW, MANY = 1, 3
SLOW_SECONDS = 1.0
"""A call that takes longer is timed three times, others seven."""
"""Blocks of the two models whose times are subtracted."""
TIMESTEP = 500.0


@dataclass(frozen=True)
class Case:
    """A transformer at its real widths, and the call of a video."""

    make: Callable[[int], Any]
    """From the number of blocks."""
    inputs: Callable[[Grid], dict[str, torch.Tensor]]
    grid: Grid
    half_timestep: bool = False
    """Whether timesteps come in the weights' dtype, as from the model's own pipeline."""

    def casts(self, name: str, x: torch.Tensor) -> bool:
        """Whether an input is of the weights' dtype."""
        if name == "timestep":
            return self.half_timestep
        return x.is_floating_point() and x.ndim > 2


def wan_inputs(grid: Grid) -> dict[str, torch.Tensor]:
    frames, height, width = grid.shape
    return {
        "hidden_states": torch.randn(1, 16, frames, 2 * height, 2 * width),
        "encoder_hidden_states": torch.randn(1, 512, 4096),
        "timestep": torch.tensor([TIMESTEP]),
    }


def hunyuan_inputs(grid: Grid) -> dict[str, torch.Tensor]:
    return {
        "hidden_states": torch.randn(1, 65, *grid.shape),
        "encoder_hidden_states": torch.randn(1, 256, 3584),
        "encoder_attention_mask": torch.ones(1, 256).long(),
        "encoder_hidden_states_2": torch.randn(1, 64, 1472),
        "encoder_attention_mask_2": torch.ones(1, 64).long(),
        "image_embeds": torch.zeros(1, 64, 1152),
        "timestep": torch.tensor([TIMESTEP]),
    }


def minimax_inputs(grid: Grid) -> dict[str, torch.Tensor]:
    """[text | audio | video], with 256 and 414 tokens before the video."""
    text, sound = torch.zeros(256, 3), torch.rand(414, 3)
    text[:, 0] = torch.arange(256)
    video = torch.cartesian_prod(*(torch.arange(float(side)) for side in grid.shape))
    video[:, 0] += len(text)
    sound[:, 0] += len(text)
    tags = torch.tensor([1] * len(text) + [2] * len(sound) + [0] * len(video))
    return {
        "hidden_states": torch.randn(1, len(video), 96),
        "audio_hidden_states": torch.randn(1, len(sound), 32),
        "encoder_hidden_states": torch.randn(1, len(text), 5120),
        "timestep": torch.tensor([1 - TIMESTEP / 1000]),
        "timestep_indices": torch.zeros(len(tags), dtype=torch.long),
        "token_tags": tags,
        "position_ids": torch.cat([text, sound, video]).double(),
        "video_indices": (tags == 0).nonzero()[:, 0],
        "audio_indices": (tags == 2).nonzero()[:, 0],
        "text_indices": (tags == 1).nonzero()[:, 0],
    }


def wan_14b(layers: int) -> Any:
    return WanTransformer3DModel(num_layers=layers)


def hunyuan_15(layers: int) -> Any:
    return HunyuanVideo15Transformer3DModel(num_layers=layers, num_refiner_layers=1)


def minimax_h3(layers: int) -> Any:
    return MiniMaxH3Transformer3DModel(num_layers=layers, num_refiner_layers=1)


CASES = {
    "wan-14b-720p": Case(wan_14b, wan_inputs, Grid(21, 45, 80)),
    "wan-14b-20s": Case(wan_14b, wan_inputs, Grid(84, 45, 80)),
    "hunyuan-1.5-720p": Case(hunyuan_15, hunyuan_inputs, Grid(31, 45, 80), half_timestep=True),
    "minimax-h3-5s": Case(minimax_h3, minimax_inputs, Grid(37, 24, 42)),
    "minimax-h3-long": Case(minimax_h3, minimax_inputs, Grid(200, 24, 42)),
}


class FirstStep:
    """A scheduler of which a call is the first of two steps.

    Args:
        timestep: of the call, as the model counts: 1000 or 0 is noise, and 1 is nearly clean or is.
    """

    def __init__(self, timestep: float) -> None:
        self.timesteps = torch.tensor([timestep, 1.0])


def table_of(model: Any, config: FreqFormerConfig, bands: list[int]) -> RoutingTable:
    layers = family_of(model).layers(model)
    tensor = torch.tensor([[bands] * len(layers)])
    return RoutingTable(tensor, torch.full_like(tensor, config.mid_tiles or 0), config)


def wide_config(grid: Grid, density: float) -> FreqFormerConfig:
    """The preset's pattern in the tiles of `choose_tile`, as near to the density as it comes."""
    base = FreqFormerConfig(tile=choose_tile(grid), summary_tokens=SUMMARIES)
    tiles = tile_layout(grid, base.tile).num_tiles
    least, most = (mid_density(grid, replace(base, mid_tiles=count), 0) for count in (1, tiles))
    # Each tile costs the same, so the density is a straight line in their number.
    nearest = round(1 + (density - least) / (most - least) * (tiles - 1))
    return replace(base, mid_tiles=min(max(nearest, 1), tiles))


@contextmanager
def enabled(model: Any, row: str, grid: Grid, timestep: float = TIMESTEP) -> Iterator[None]:
    """The row's attention in the block, for calls of this timestep."""
    kind, _, amount = row.rpartition("-")
    heads = family_of(model).layers(model)[0][1].heads
    every: dict[str, Any] = {"start_percent": 0, "min_tokens": 0}
    if row == "dense":
        manager: Any = nullcontext()
    elif row == "own":
        dials = {"start_percent": 0.4, "min_tokens": 0, "scheduler": FirstStep(timestep)}
        manager = enable_frequency_attention(model, **dials)
    elif kind == "preset":
        manager = enable_frequency_attention(model, density=float(amount), **every)
    elif row in ("thirds", "thirds-steps"):
        config = FreqFormerConfig(tile=choose_tile(grid), summary_tokens=SUMMARIES)
        table = table_of(model, config, even_allocation(heads))
        manager = enable_frequency_attention(model, table)
    else:
        config = wide_config(grid, float(amount))
        table = table_of(model, config, [Band.MID.value] * heads)
        manager = enable_frequency_attention(model, table)
    with manager, stepwise() if row == "thirds-steps" else nullcontext():
        yield


@contextmanager
def stepwise() -> Iterator[None]:
    """Norms and rotary embeddings as steps before the operation, while it is on."""
    own = FrequencyProcessor.attend

    def attend(
        self: FrequencyProcessor,
        share: Share,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        parameters: AttentionParameters,
        **named: Any,
    ) -> torch.Tensor:
        query, key = prepared(query, key, parameters, share.video.grid.num_tokens)
        return own(self, share, query, key, value, AttentionParameters(), **named)

    with mock.patch.object(FrequencyProcessor, "attend", attend):
        yield


def all_rows() -> list[str]:
    """Names of all rows."""
    amounts = [f"{kind}-{density:g}" for kind in ("preset", "tiles-128") for density in DENSITIES]
    return ["dense", "own", "thirds", "thirds-steps", *amounts]


def measure(
    case: Case, device: torch.device, *, compiled: bool, rows: Sequence[str] | None = None
) -> dict[str, dict[str, float]]:
    """Milliseconds of a block, and most bytes that a call of three held, by row."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    inputs = {name: x.to(device) for name, x in case.inputs(case.grid).items()}
    found: dict[str, dict[str, float]] = {row: {} for row in rows or all_rows()}
    for layers in (FEW, MANY):
        torch.manual_seed(0)
        with device:
            model = case.make(layers).to(dtype).eval()
        given = {name: x.to(dtype) if case.casts(name, x) else x for name, x in inputs.items()}

        @torch.no_grad()
        def run(model: Any = model, given: dict[str, torch.Tensor] = given) -> Any:
            return model(**given, return_dict=False)

        for row, values in found.items():
            with enabled(model, row, case.grid, float(inputs["timestep"])):
                if compiled:
                    torch.compiler.reset()
                    model.compile_repeated_blocks(fullgraph=True)
                values[f"{layers} blocks"] = timed(run, device)
                values["peak_bytes"] = peak_bytes(run, device)
        del model
    for values in found.values():
        values["ms"] = (values[f"{MANY} blocks"] - values[f"{FEW} blocks"]) / (MANY - FEW)
    return found


def timed(run: Callable[[], Any], device: torch.device) -> float:
    """Milliseconds of a call, after others that compile what has to be."""
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.type != "cuda":
        return 1e3 * (time.perf_counter() - start)
    torch.cuda.synchronize()
    slow = time.perf_counter() - start > SLOW_SECONDS
    return record.median_ms(run, repeats=3 if slow else 7, warmup=0)


def peak_bytes(run: Callable[[], Any], device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def block_flops(case: Case) -> tuple[float, float]:
    """FLOPs of a dense block's call, and those of its attention among the video's own tokens; on no
    device."""
    found = []
    for layers in (1, 2):
        with torch.device("meta"):
            model = case.make(layers)
        inputs = {name: x.to("meta") for name, x in case.inputs(case.grid).items()}
        with FlopCounterMode(display=False) as counted, torch.no_grad():
            model(**inputs, return_dict=False)
        found.append(counted.get_total_flops())
    width = family_of(model).layers(model)[0][1].heads * model.config["attention_head_dim"]
    own = 4 * case.grid.num_tokens**2 * width
    return float(found[1] - found[0]), float(own)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument(
        "--rows", nargs="+", choices=all_rows(), default=all_rows(), help="dense is always one"
    )
    parser.add_argument("--compiled", action="store_true", help="repeated blocks, on both sides")
    parser.add_argument("--output", type=Path, default=record.RESULTS)
    parser.add_argument("--commit", help="of this checkout, where git isn't there to ask")
    given = parser.parse_args()
    given.rows = ["dense", *(row for row in given.rows if row != "dense")]
    if not torch.cuda.is_available():
        raise SystemExit("this takes a GPU: at real widths a CPU would need hours")
    name = f"plugin_blocks{'_compiled' if given.compiled else ''}"
    cases = _measured(given.output / f"{name}.json")
    for case in given.case:
        rows = measure(CASES[case], torch.device("cuda"), compiled=given.compiled, rows=given.rows)
        machine = record.machine(given.commit)
        cases[case] = {"machine": machine, "grid": CASES[case].grid.shape, "rows": rows}
        dense = rows["dense"]["ms"]
        for row, values in rows.items():
            ratio, peak = dense / values["ms"], values["peak_bytes"] / 1e9
            print(
                f"{case:18}{row:16}{values['ms']:10.1f} ms{ratio:8.2f} x{peak:8.1f} GB", flush=True
            )
        results = {"compiled": given.compiled, "cases": cases}
        print(record.save(name, results, given.output, given.commit), flush=True)


def _measured(path: Path) -> dict[str, Any]:
    """Cases of earlier calls, by name, each with the machine and commit that it is of."""
    return json.loads(path.read_text(encoding="utf-8"))["cases"] if path.exists() else {}


if __name__ == "__main__":
    main()
