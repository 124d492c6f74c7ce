"""`freqformer simulate`, as typed."""

from __future__ import annotations

import json

import pytest
from tests.support.command_line import run


def test_simulate_writes_what_is_asked(tmp_path):
    paths = [tmp_path / name for name in ("out.json", "out.csv", "report.html")]
    shown = run(
        *("simulate", "--model", "wan2.1-1.3b", "--hardware", "h200", "--tokens", "16384,2s@480p/24"),
        *("--set", "mid_tiles=8", "--set", "window=1,3,3", "--set", "split=1,1,4", "--set", "routing=fixed"),
        *("--json", paths[0], "--csv", paths[1], "--html", paths[2], "--figures", tmp_path / "figures"),
    )
    assert "Wan2.1 T2V 1.3B on NVIDIA H200 SXM" in shown
    assert all(path.stat().st_size > 500 for path in paths)
    assert len(list((tmp_path / "figures").glob("simulate-*.png"))) >= 8
    scenarios = json.loads(paths[0].read_text())["scenarios"]
    assert [record["grid"] for record in scenarios] == [[11, 30, 52], [13, 30, 52]]
    assert scenarios[0]["config"]["mid_tiles"] == 8
    assert scenarios[0]["config"]["window"] == [1, 3, 3]
    assert scenarios[0]["heads"] == {"low": 2, "mid": 2, "high": 8, "dense": 0}


def test_a_borrowed_calibration_claims_no_errors():
    shown = run("simulate", "--hardware", "a100", "--tokens", 16_384)
    assert "Nothing was measured on NVIDIA A100" in shown
    assert "Times against committed measurements" not in shown
    assert "held out: " in run("simulate", "--tokens", 16_384)
    named = run("simulate", "--hardware", "h200", "--tokens", 16_384, "--set", "calibration=cpu")
    assert "Nothing was measured on NVIDIA H200 SXM: the fractions that kernels achieve are those of cpu" in named


def test_a_machine_without_links_has_no_scale_out(tmp_path):
    run("simulate", "--model", "freqformer", "--hardware", "cpu", "--tokens", 4096, "--json", tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["scale_out"] == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--model", "wan"], "the nearest is 'wan2.1-14b'"),
        (["--hardware", "h300"], "the nearest is 'h200'"),
        (["--hardware", "missing.json"], "missing.json can't be read"),
        (["--tokens", "-5"], "tokens is -5"),
        (["--tokens", "0"], "tokens is 0"),
        (["--tokens", "99999999999"], "tokens is 99999999999"),
        (["--tokens", ","], "tokens is empty"),
        (["--tokens", "5m"], "length is '5m'"),
        (["--set", "mid_tiles"], "setting is 'mid_tiles'; NAME=VALUE"),
        (["--set", "speed=9"], "setting is 'speed=9'"),
        (["--set", "mid_tiles=-1"], "mid_tiles is -1"),
        (["--set", "split=1,2"], "split is (1, 2)"),
        (["--set", "schedule=often"], "schedule is 'often'"),
        (["--set", "split=3"], "split is (3,)"),
        (["--set", "head_dim=7"], "head_dim is 7"),
        (["--set", "head_dim=abc"], "head_dim is 'abc'"),
        (["--set", "live=true"], "setting is 'live=true'; NAME=VALUE with one of"),
        (["--set", "low_beside=maybe"], "low_beside is 'maybe'; true and false are allowed"),
        (["--set", "learned_summaries=no"], "learned_summaries is 'no'"),
        (["--set", "calibration=h300"], "the nearest is 'h200'"),
        (["--set", "table=missing"], "missing"),
    ],
)
def test_bad_input_is_one_line(arguments, text):
    shown = run("simulate", *arguments, code=2)
    assert shown.startswith("error: ")
    assert text in shown
