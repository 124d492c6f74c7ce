"""The benchmark of peers: its lists, its exact results, what a failing peer does, its tables, and a
tiny run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from freqformer.grid import TILE_SLOTS, Grid

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
TOLD = {"kind": "random", "grid": [4, 8, 16], "heads": 2, "head_dim": 16, "tile": [2, 8, 8]}


@pytest.fixture(autouse=True)
def _found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def module(name: str) -> Any:
    return import_module(name)


def made(**told: Any) -> Any:
    return module("peers_rows").make_work(TOLD | told, CPU, torch.float32)


def masked(work: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Output and gradients by autograd with a full mask, in float64."""
    heads, tiles, _ = work.lists.shape
    seen = torch.zeros(heads, tiles, tiles, dtype=torch.bool).scatter_(2, work.lists.long(), True)
    seen = seen.repeat_interleave(TILE_SLOTS, 1).repeat_interleave(TILE_SLOTS, 2)
    leaves = [x.double().requires_grad_() for x in (work.query, work.key, work.value)]
    query, key, value = leaves
    scores = query @ key.transpose(1, 2) * query.shape[2] ** -0.5
    out = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value
    return out.detach(), torch.autograd.grad(out, leaves, work.grad_out.double())


def test_exact_results_are_those_of_a_full_mask() -> None:
    work, grads_of = made(density=0.5), module("peers_work").Grads
    out, grads = masked(work)
    assert work.output_error(out) < 1e-12
    assert work.gradient_error(grads_of(*grads)) < 1e-12
    row, tile = work.samples[-1]
    place = tile * TILE_SLOTS
    out[row, place] += 0.1
    assert work.output_error(out) > 1e-3
    for grad in grads:
        wrong = grad.clone()
        wrong[row, place] += 0.1 * grad.abs().max()
        changed = grads_of(*(wrong if x is grad else x for x in grads))
        assert work.gradient_error(changed) > 1e-3
    assert work.output_error(torch.full_like(out, torch.nan)) == float("inf")


def test_lists_of_halves_and_of_queries_say_the_same() -> None:
    work = made(density=0.5)
    counts, listing = work.turned
    for head, tile in product(range(2), range(4)):
        expected = [query for query in range(4) if tile in work.lists[head, query].tolist()]
        assert listing[head, tile, : counts[head, tile]].tolist() == expected
        halves = [
            half for key in work.lists[head, tile].tolist() for half in (2 * key, 2 * key + 1)
        ]
        for half in (2 * tile, 2 * tile + 1):
            assert work.halves[head, half].tolist() == halves


def test_raster_order_and_back() -> None:
    work = made(density=0.5)
    raster = work.raster(work.query)
    assert torch.equal(work.tiled(raster), work.query)
    # Tile 0 holds the first 8 columns of 8 rows of two frames: its 9th token begins the second row.
    assert torch.equal(raster[0, 16], work.query[:, 8])


def seen_along(query: int, length: int, size: int, stride: int) -> range:
    """Keys of a query on one axis: NATTEN's window around the middle of its group."""
    middle = min(query // stride * stride + stride // 2, length - 1)
    left, right = size // 2, size // 2 + size % 2 - 1
    start = max(middle - left, 0)
    if middle + right >= length:
        start += length - middle - right - 1
    return range(start, start + size)


def test_window_lists_are_the_tokens_of_the_window() -> None:
    lists, grid, tile = module("peers_lists"), Grid(30, 16, 32), (2, 8, 8)
    window = lists.Window((18, 8, 24), (16, 8, 8))
    found = lists.window_lists(grid, tile, window)
    shape = [length // side for length, side in zip(grid.shape, tile, strict=True)]
    for index, place in enumerate(product(*map(range, shape))):
        kept = {tuple(x) for x in torch.stack(torch.unravel_index(found[index], shape), 1).tolist()}
        for first, last in ((0, 0), (1, 7)):
            token = [
                at * side + (first, last, last)[axis]
                for axis, (at, side) in enumerate(zip(place, tile, strict=True))
            ]
            ranges = map(seen_along, token, grid.shape, window.size, window.stride)
            tokens = product(*ranges)
            assert {tuple(x // s for x, s in zip(t, tile, strict=True)) for t in tokens} == kept
    with pytest.raises(ValueError, match="cut no tile"):
        lists.window_lists(grid, tile, lists.Window((17, 8, 24), (16, 8, 8)))


def test_natten_window_has_its_density() -> None:
    told = module("peers_groups").NATTEN_WINDOW
    lists = module("peers_lists")
    window = lists.Window(tuple(told["window"]), tuple(told["stride"]))
    natten = lists.window_lists(Grid(*told["grid"]), tuple(told["tile"]), window)
    own = lists.own_window_lists(Grid(*told["grid"]), tuple(told["tile"]), window)
    assert natten.shape == own.shape == (900, 81)


def test_what_is_wrong_or_raises_is_not_timed() -> None:
    rows, work, worker = (module(f"peers_{name}") for name in ("rows", "work", "worker"))

    def forward(given: Any) -> Any:
        return work.Timed(lambda: torch.zeros_like(given.query), lambda out: out)

    def backward(given: Any) -> Any:
        raise ImportError("a part of it isn't there")

    peer = rows.Peer("made up", True, rows.SPARSE, forward, backward)
    held = worker.Worker(peer)
    held.device, held.dtype = CPU, torch.float32
    found = held.prepare({"lists": TOLD | {"density": 0.5}})
    assert [check["failed"] for check in found["lists"]] == [
        "relative error 1.00e+00 against float64",
        "ImportError: a part of it isn't there",
    ]
    assert held.ready == {}


PEER = """
import json, sys, time
ms = {"quick": 1.0, "late": 1.5, "slow": 2.0}
for line in sys.stdin:
    told, name = json.loads(line), sys.argv[1]
    check = {"relative_error": 1e-3, "same_bits": True, "flops": 1e9}
    answer = {"ms": ms.get(name)}
    if told["do"] == "prepare":
        if name == "ends":
            sys.exit(3)
        if name == "hangs":
            time.sleep(600)
        if name == "late" and told["works"]["lists"]["density"] == 0.5:
            time.sleep(4)
        checks = [check, {"failed": "it is wrong"}] if name == "quick" else [check, None]
        answer = {work: checks for work in told["works"]}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A bench of made-up peers."""
    peers, rows = module("peers"), module("peers_rows")
    worker = tmp_path / "worker.py"
    worker.write_text(PEER)
    monkeypatch.setattr(module("peers_process"), "WORKER", worker)
    base = rows.PEERS[0]
    named = [
        replace(base, name=name, module=None) for name in ("quick", "ends", "hangs", "late", "slow")
    ]
    named.append(replace(base, name="absent", module="no_such_package.inside"))
    made = peers.Bench(named, time.monotonic() + 60, 3, {})
    yield made
    made.stop()


def test_a_peer_that_fails_is_named_and_others_go_on(bench: Any) -> None:
    group = module("peers_groups").Group("tiny", {"lists": TOLD | {"density": 0.5}})
    bench.run(group, 2.0, [])
    found = bench.groups["tiny"]
    assert list(found["forward"]) == ["quick", "slow"]
    assert found["backward"] == {}
    slow = found["forward"]["slow"]
    assert (slow["ms"], slow["reference"], slow["times_reference_rate"]) == (2.0, "quick", 0.5)
    assert (slow["tflops_per_s"], len(slow["rounds"]), slow["deterministic"]) == (0.5, 3, True)
    why = found["not_measured"]
    assert why["quick, backward"] == "it is wrong"
    assert why["ends"] == "its process ended (exit status 3)"
    assert why["hangs"].startswith("no answer in ")
    assert "no_such_package" in why["absent"]
    assert why["late"].startswith("no answer in ")
    time.sleep(4)
    bench.run(replace(group, works={"lists": TOLD | {"density": 0.25}}), 2.0, [])
    assert list(bench.groups["tiny"]["forward"]) == ["quick", "late", "slow"]
    again = bench.groups["tiny"]["not_measured"]
    assert again["hangs"] == "it still works on an earlier group"
    bench.end = time.monotonic() - 1
    bench.run(group, 2.0, [])
    assert set(bench.groups["tiny"]["not_measured"].values()) == {"the run's time is over"}


def test_what_is_compiled_ahead() -> None:
    groups, rows = module("peers_groups"), module("peers_rows")
    jobs = module("peers").jobs_ahead(groups.GROUPS, list(rows.PEERS))
    tokens = {
        told["heads"] * told["grid"][0]
        for job in jobs
        for told in job.works.values()
        if job.peer.by_shape
    }
    assert tokens == {24 * 30, 8 * 32, 8 * 8, 8 * 64}
    assert {job.peer.name for job in jobs if not job.peer.by_shape} == {
        "ours, gluon",
        "ours, gluon, any order",
        "ours, triton",
    }


def test_the_tables() -> None:
    page = module("peers_table")
    tables = page.tables
    values = {"ms": 2.0, "tflops_per_s": 400.4, "deterministic": True}
    lists = {"forward": {"a": values}, "backward": {"a": values | {"deterministic": False}}}
    layer = {"forward": {"default: a": values | {"share_of_uniform_rate": 0.95}}, "backward": {}}
    results = {
        "groups": {
            "8 x 8, 10% of blocks": lists | {"works": {"lists": TOLD | {"density": 0.1}}},
            "layers": layer | {"works": {"default": {"kind": "layer"}}},
            "window": lists | {"works": {"window": {"kind": "window"}}},
        },
        "published": module("peers_groups").PUBLISHED,
    }
    lines = tables(results).splitlines()
    assert lines[0] == "| useful TFLOP/s, forward / backward | 8 × 8, 10% of blocks |"
    assert lines[2] == "| a | 400 / 400 * |"
    assert lines.index(page.LAYERS) < lines.index(page.WINDOW)
    assert "| default: a | 2.00 / – | 400 / – | 0.950 / – |" in lines
    assert "| a | 2.0 / 2.0 * | 400 / 400 * |" in lines
    assert "| NATTEN, its kernel: published, H100, not measured here | 23.4 / – | – |" in lines


def tiny_run(folder: Path, *names: str) -> dict[str, Any]:
    """What the command writes of these peers on tiny works."""
    typed = ["benchmarks/peers.py", "--quick", "--seconds", "500", "--output", str(folder)]
    done = subprocess.run(
        [sys.executable, *typed, "--commit", "abc", "--peers", *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "peers.json").read_text())


def test_a_tiny_run_of_dense_attention(tmp_path: Path) -> None:
    found = tiny_run(tmp_path, "cuDNN, dense", "NATTEN")
    assert found["machine"]["commit"] == "abc"
    assert found["machine"]["command"].endswith("--peers 'cuDNN, dense' NATTEN")
    half, dense, _, window = found["groups"].values()
    for name in ("forward", "backward"):
        assert not half[name]
        assert dense[name]["cuDNN, dense"]["relative_error"] < 1e-5
    assert list(window["not_measured"]) == ["window: NATTEN"]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="kernels run in Triton's interpreter")
def test_a_tiny_run(tmp_path: Path) -> None:
    names = ("ours, triton", "ours, triton, whole operation", "cuDNN, dense", "NATTEN")
    found = tiny_run(tmp_path, *names)
    assert found["machine"]["commit"] == "abc"
    half, dense, layers, window = found["groups"].values()
    for name in ("forward", "backward"):
        assert set(half[name]) == {"ours, triton"}
        assert set(dense[name]) == {"ours, triton", "cuDNN, dense"}
        works = ("uniform lists", "default", "paper")
        assert set(layers[name]) == {f"{work}: ours, triton" for work in works}
        assert layers[name]["default: ours, triton"]["share_of_uniform_rate"] > 0
        operation = "own window: ours, triton, whole operation"
        assert set(window[name]) == {"window: ours, triton", operation}
        for group in (half, dense, layers, window):
            for values in group[name].values():
                assert values["relative_error"] < 1e-5
                assert values["same_bits"]
    assert list(window["not_measured"]) == ["window: NATTEN"]
