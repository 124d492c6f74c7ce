"""`freqformer simulate`, as typed."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from tests.support.command_line import invoke, refused, run

from freqformer import Band, FreqFormerConfig
from freqformer.routing import RoutingTable


def test_simulate_writes_what_is_asked(tmp_path):
    paths = [tmp_path / name for name in ("out.json", "out.csv", "report.html")]
    shown = run(
        *(
            "simulate",
            "--model",
            "wan2.1-1.3b",
            "--hardware",
            "h200",
            "--tokens",
            "16384,2s@480p/24",
        ),
        *(
            "--set",
            "mid_tiles=8",
            "--set",
            "window=1,3,3",
            "--set",
            "split=1,1,4",
            "--set",
            "routing=fixed",
        ),
        *(
            "--json",
            paths[0],
            "--csv",
            paths[1],
            "--html",
            paths[2],
            "--figures",
            tmp_path / "figures",
        ),
    )
    assert "Wan2.1 T2V 1.3B on NVIDIA H200 SXM" in shown
    assert all(path.stat().st_size > 500 for path in paths)
    assert len(list((tmp_path / "figures").glob("simulate-*.png"))) >= 8
    scenarios = json.loads(paths[0].read_text())["scenarios"]
    assert [record["grid"] for record in scenarios] == [[11, 30, 52], [13, 30, 52]]
    assert scenarios[0]["config"]["mid_tiles"] == 8
    assert scenarios[0]["config"]["window"] == [1, 3, 3]
    assert scenarios[0]["heads"] == {"low": 2, "mid": 2, "high": 8, "dense": 0}


def test_documents_go_to_stdout(tmp_path):
    """A pipe gets the document and nothing else; the table is beside it, on stderr."""
    case = ("simulate", "--model", "freqformer", "--hardware", "cpu", "--tokens", "4K,1e4")
    piped = invoke(*case, "--json", "-", "--csv", tmp_path / "out.csv")
    assert piped.exit_code == 0, piped.output
    assert [one["requested"] for one in json.loads(piped.stdout)["scenarios"]] == ["4K", "1e4"]
    assert "preset default" in piped.stderr
    assert invoke(*case, "--csv", "-").stdout == (tmp_path / "out.csv").read_text()
    assert invoke(*case, "--html", "-").stdout.startswith("<!doctype html>")
    refused(
        *case, "--html", "-", "--json", "-", message="--json and --html are both -; one of them"
    )
    refused(*case, "--figures", "-", message="--figures is -; a folder is allowed")


def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path):
    """So is a file of the name that an unfinished one once had."""
    kept = tmp_path / "kept.txt"
    kept.write_text("mine")
    names = ("out.json", "out.csv", "report.html")
    for name in names:
        (tmp_path / name).symlink_to(kept)
        (tmp_path / (name + ".part")).symlink_to(kept)
    run(
        *(
            "simulate",
            "--model",
            "freqformer",
            "--hardware",
            "cpu",
            "--tokens",
            4096,
            "--json",
            tmp_path / "out.json",
        ),
        *("--csv", tmp_path / "out.csv", "--html", tmp_path / "report.html"),
    )
    assert kept.read_text() == "mine"
    for name in names:
        assert not (tmp_path / name).is_symlink()
        assert (tmp_path / name).stat().st_size > 500
        assert (tmp_path / (name + ".part")).is_symlink()


def test_a_table_goes_into_documents(tmp_path):
    """Sensitivity, which all documents but the CSV hold, changes its settings too."""
    bands = torch.full((2, 6, 6), int(Band.HIGH))
    bands[1, :, :3] = int(Band.MID)
    config = FreqFormerConfig(tile=(2, 8, 8), compression=16)
    RoutingTable(bands, torch.full_like(bands, 8), config).save(tmp_path / "table")
    shown = run(
        *("simulate", "--model", "freqformer", "--hardware", "h200", "--tokens", 4096),
        *("--set", f"table={tmp_path / 'table'}", "--json", tmp_path / "out.json"),
    )
    assert "a table of 2 noise levels and 6 layers: 25% mid, 75% high of the heads" in shown
    assert "runs beside the table" in shown
    (found,) = json.loads((tmp_path / "out.json").read_text())["scenarios"]
    assert found["config"]["compression"] == 16
    assert found["routing"]["table_shape"] == [2, 6, 6]
    assert found["routing"]["schedule"] == "table"
    assert "router" in found["freqformer"]["stages"]


def test_presets_and_settings_are_told(tmp_path):
    case = (
        "simulate",
        "--model",
        "freqformer",
        "--hardware",
        "cpu",
        "--tokens",
        4096,
        "--csv",
        "-",
    )
    assert "preset default: forward" in invoke(*case).stderr
    changed = " ".join(invoke(*case, "--preset", "paper", "--set", "mid_tiles=8").stderr.split())
    assert "preset paper with other mid_tiles: forward" in changed
    assert "split: 2 LOW, 2 MID, 2 HIGH of 6 heads at first" in changed
    assert "learned summaries: mid and high ones" in changed
    dense = list(csv.DictReader(invoke(*case, "--preset", "dense").stdout.splitlines()))
    assert [(row["preset"], row["density"], row["speedup"]) for row in dense] == [
        ("dense", "1.0", "1.0")
    ]
    for setting, name in (
        ("mid_tiles=8", "mid_tiles"),
        ("split=1,1,1", "split"),
        ("routing=soft", "routing"),
    ):
        refused(
            *case,
            "--preset",
            "dense",
            "--set",
            setting,
            message=f"{name} is set, and dense attention has no bands",
        )


def test_a_borrowed_efficiency_claims_no_errors():
    shown = run("simulate", "--hardware", "a100", "--tokens", 16_384)
    assert "Nothing was measured on NVIDIA A100" in shown
    assert "Times against committed measurements" not in shown
    assert "held out: " in run("simulate", "--tokens", 16_384)
    named = run("simulate", "--hardware", "h200", "--tokens", 16_384, "--set", "efficiency=cpu")
    assert (
        "Nothing was measured on NVIDIA H200 SXM: the fractions that kernels achieve are those of "
        "cpu" in named
    )


def test_a_machine_without_links_has_no_scale_out(tmp_path):
    run(
        "simulate",
        "--model",
        "freqformer",
        "--hardware",
        "cpu",
        "--tokens",
        4096,
        "--json",
        tmp_path / "out.json",
    )
    assert json.loads((tmp_path / "out.json").read_text())["scale_out"] == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--preset", "papers"], "preset is 'papers'; the nearest is 'paper'"),
        (["--model", "wan"], "the nearest is 'wan2.2-5b'"),
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
        (["--set", "low_branch=maybe"], "low_branch is 'maybe'; true and false are allowed"),
        (["--set", "learned_summaries=no"], "learned_summaries is 'no'"),
        (["--set", "efficiency=h300"], "the nearest is 'h200'"),
        (["--set", "table=missing"], "missing"),
    ],
)
def test_bad_input_is_one_line(arguments, text):
    shown = run("simulate", *arguments, code=2)
    assert shown.startswith("error: ")
    assert text in shown
