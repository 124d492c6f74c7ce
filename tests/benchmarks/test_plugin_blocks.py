"""The benchmark of diffusers' blocks at tiny widths: every row is what it is called."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from benchmarks.plugin_blocks import (
    CASES,
    MANY,
    Case,
    all_rows,
    enabled,
    measure,
    minimax_inputs,
    wan_inputs,
    wide_config,
)
from diffusers.models.transformers.transformer_hunyuan_video15 import (
    HunyuanVideo15Transformer3DModel,
)
from diffusers.models.transformers.transformer_minimax_h3 import MiniMaxH3Transformer3DModel
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

from benchmarks import plugin_blocks as benchmark
from freqformer.grid import Grid
from freqformer.integrations.diffusers import processor
from freqformer.integrations.diffusers.families import family_of
from freqformer.training_free.preset import mid_density

CPU = torch.device("cpu")


def small_wan(layers: int) -> Any:
    return WanTransformer3DModel(
        num_layers=layers, num_attention_heads=3, attention_head_dim=16, ffn_dim=32
    )


def small_minimax(layers: int) -> Any:
    return MiniMaxH3Transformer3DModel(
        num_layers=layers,
        num_attention_heads=3,
        attention_head_dim=16,
        hidden_size=24,
        ffn_dim=32,
        num_refiner_layers=1,
        time_embed_hidden_dim=32,
        time_embed_dim=16,
        rope_freq_dim=2,
    )


def small_hunyuan(layers: int) -> Any:
    return HunyuanVideo15Transformer3DModel(
        num_layers=layers,
        num_attention_heads=2,
        attention_head_dim=16,
        num_refiner_layers=1,
        rope_axes_dim=(4, 6, 6),
    )


CASE = Case(small_wan, wan_inputs, Grid(6, 16, 16))


def test_every_row_is_timed() -> None:
    found = measure(CASE, CPU, compiled=False)
    assert list(found) == all_rows()
    assert all(values[f"{MANY} blocks"] > 0 for values in found.values())


@pytest.mark.parametrize(
    ("case", "tried"),
    [
        (CASE, all_rows()),
        # Text and sound are half of so short a sequence.
        (Case(small_minimax, minimax_inputs, Grid(8, 16, 16)), ["dense", "own", "preset-0.5"]),
    ],
    ids=["wan", "minimax"],
)
def test_rows_change_what_they_say(case: Case, tried: list[str]) -> None:
    torch.manual_seed(0)
    model = case.make(2).eval()
    inputs = case.inputs(case.grid)
    outputs: dict[str, torch.Tensor] = {}
    for row in tried:
        timestep = float(inputs["timestep"])
        with enabled(model, row, case.grid, timestep), torch.no_grad():
            outputs[row] = model(**inputs, return_dict=False)[0]
    dense = outputs.pop("dense")
    assert torch.equal(outputs.pop("own"), dense)
    if "thirds-steps" in outputs:
        # The same by another way.
        torch.testing.assert_close(outputs.pop("thirds-steps"), outputs["thirds"])
    differences = {row: float((out - dense).norm() / dense.norm()) for row, out in outputs.items()}
    assert min(differences.values()) > 1e-6
    assert len(set(differences.values())) == len(differences)


def test_steps_before_the_operation_leave_it_nothing_to_do() -> None:
    torch.manual_seed(0)
    model = CASE.make(1).eval()
    told = []
    attend = processor.attend_around

    def spy(*given: Any, parameters: Any, **named: Any) -> Any:
        told.append(parameters)
        return attend(*given, parameters=parameters, **named)

    for row in ("thirds", "thirds-steps"):
        with (
            mock.patch.object(processor, "attend_around", spy),
            enabled(model, row, CASE.grid),
            torch.no_grad(),
        ):
            model(**CASE.inputs(CASE.grid))
    inside, before = told
    assert inside.query_norm is not None
    assert inside.rotary is not None
    assert before.query_norm is None
    assert before.rotary is None


def test_the_wide_tiles_have_the_density() -> None:
    for case in CASES.values():
        config = wide_config(case.grid, 0.2)
        assert mid_density(case.grid, config, 0) == pytest.approx(0.2, rel=0.02)


def test_cases_have_the_grids_of_their_calls() -> None:
    """Text, sound and pictures are counted apart."""
    with torch.device("meta"):
        models = {name: case.make(1) for name, case in CASES.items()}
    for name in ("wan-14b-720p", "minimax-h3-5s"):
        case = CASES[name]
        given = case.inputs(case.grid)
        assert family_of(models[name]).video(models[name], given).grid == case.grid


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("wan-14b-720p", small_wan),
        ("hunyuan-1.5-720p", small_hunyuan),
        ("minimax-h3-5s", small_minimax),
    ],
)
def test_calls_are_in_the_dtypes_that_the_models_take(name: str, make: Any) -> None:
    """Of a model of bfloat16 weights, as on a GPU."""
    case = replace(CASES[name], make=make, grid=Grid(2, 4, 4))
    inputs = case.inputs(case.grid)
    given = {k: x.bfloat16() if case.casts(k, x) else x for k, x in inputs.items()}
    with torch.no_grad():
        out = make(1).bfloat16()(**given, return_dict=False)[0]
    assert out.isfinite().all()


def test_cases_of_earlier_calls_stay(tmp_path: Path) -> None:
    path = tmp_path / "plugin_blocks.json"
    assert benchmark._measured(path) == {}
    path.write_text('{"machine": {}, "cases": {"wan-14b-720p": {}}}')
    assert benchmark._measured(path) == {"wan-14b-720p": {}}


def test_rows_that_are_asked_for() -> None:
    found = measure(CASE, CPU, compiled=False, rows=["dense", "thirds"])
    assert list(found) == ["dense", "thirds"]
