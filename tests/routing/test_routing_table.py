"""Frozen routing: what is kept of a router's choices, and files that are damaged."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save
from tests.support.damage import flip_bits

from freqformer._files import sealed
from freqformer.config import Band, FreqFormerConfig
from freqformer.routing import RoutingTable, allocate, timestep_bucket
from freqformer.routing.origin import SAMPLES
from freqformer.routing.table import RECORD_NAME, TENSORS_NAME, attend_by_bucket

CONFIG = FreqFormerConfig(tile=(2, 3, 4), mid_tiles=5)


def make_table(buckets: int = 4, layers: int = 2, heads: int = 3) -> RoutingTable:
    bands = torch.randint(
        0, 4, (buckets, layers, heads), generator=torch.Generator().manual_seed(0)
    )
    return RoutingTable(bands, torch.full_like(bands, 5), CONFIG)


def test_shares_of_the_heads_add_up_to_all():
    table = make_table()
    assert list(table.shares) == ["low", "mid", "high", "dense"]
    assert sum(table.shares.values()) == pytest.approx(1)
    for band in Band:
        assert table.shares[band.name.lower()] == pytest.approx(
            float((table.bands == band).double().mean())
        )


def test_buckets_are_equal_shares_of_the_noise_levels():
    timestep = torch.tensor([0.0, 0.2499, 0.25, 0.5, 0.99, 1.0])
    assert timestep_bucket(timestep, 4).tolist() == [0, 0, 1, 2, 3, 3]


def test_frozen_logits_are_averaged_over_a_bucket():
    timestep = torch.tensor([0.1, 0.2, 0.9])
    logits = torch.zeros(3, 1, 2, 3)
    logits[0, 0, 0] = torch.tensor([1.0, 0.0, 0.0])
    logits[1, 0, 0] = torch.tensor([0.0, 0.0, 3.0])  # the mean of the bucket favours HIGH
    logits[:, 0, 1, 1] = 1.0
    logits[2, 0, 0, 1] = 1.0
    table = RoutingTable.freeze(timestep, logits, CONFIG, num_buckets=2)
    assert table.bands.tolist() == [[[2, 1]], [[1, 1]]]
    assert table.mid_tiles.unique().tolist() == [5]
    assert table.shape == (2, 1, 2)


def test_of_frozen_allocations_the_most_frequent_counts():
    observed = torch.tensor([[[0, 3]], [[2, 3]], [[2, 1]], [[1, 0]]])
    table = RoutingTable.freeze(torch.tensor([0.1, 0.2, 0.3, 0.9]), observed, CONFIG, num_buckets=2)
    assert table.bands.tolist() == [[[2, 3]], [[1, 0]]]


def test_a_bucket_without_samples_takes_the_nearest():
    observed = torch.tensor([[[0]], [[2]]])
    table = RoutingTable.freeze(torch.tensor([0.15, 0.95]), observed, CONFIG, num_buckets=10)
    assert (
        table.bands.flatten().tolist() == [0] * 6 + [2] * 4
    )  # bucket 5 is as far from both; the lower one counts


def test_a_budget_holds_in_every_bucket_and_layer():
    costs, budget = (1.0, 5.0, 3.0, 10.0), 0.3
    logits = torch.randn(40, 2, 4, 3)
    timestep = torch.rand(40)
    table = RoutingTable.freeze(timestep, logits, CONFIG, num_buckets=5, costs=costs, budget=budget)
    spent = torch.tensor(costs)[table.bands].sum(-1)
    assert (spent <= budget * 4 * 10).all()
    mean = logits[timestep_bucket(timestep, 5) == 2].double().mean(0)
    assert torch.equal(table.bands[2], allocate(mean, costs=costs, budget=budget))


def test_save_and_load_give_the_same_table(tmp_path):
    table = replace(make_table(), config=replace(CONFIG, mid_cutoff=0.4, window=(1, 3, 3)))
    table.save(tmp_path / "new" / "folder")
    loaded = RoutingTable.load(tmp_path / "new" / "folder")
    assert torch.equal(loaded.bands, table.bands)
    assert torch.equal(loaded.mid_tiles, table.mid_tiles)
    assert loaded.config == table.config
    names = sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    assert names == [RECORD_NAME, TENSORS_NAME]


def damage(folder, name, change):
    path = folder / name
    path.write_bytes(change(path.read_bytes()))


def rewrite(folder, **fields):
    """Change fields of the JSON record."""
    path = folder / RECORD_NAME
    path.write_text(json.dumps(sealed({**json.loads(path.read_text()), **fields})))


def swap_content(folder, content):
    """Another tensor file, with a record that matches it."""
    (folder / TENSORS_NAME).write_bytes(content)
    rewrite(folder, sha256=hashlib.sha256(content).hexdigest())


def swap_tensors(folder, **tensors):
    swap_content(folder, save(tensors))


BAD_FILES = {
    "no record": (lambda folder: (folder / RECORD_NAME).unlink(), "can't be read"),
    "no tensors": (lambda folder: (folder / TENSORS_NAME).unlink(), "can't be read"),
    "record cut short": (
        lambda folder: damage(folder, RECORD_NAME, lambda b: b[:40]),
        "can't be read",
    ),
    "record of other bytes": (
        lambda folder: damage(folder, RECORD_NAME, lambda b: b"\xff\xfe"),
        "can't be read",
    ),
    "record is a list": (
        lambda folder: damage(folder, RECORD_NAME, lambda b: b"[1]"),
        "holds list; an object is allowed",
    ),
    "record nested deep": (
        lambda folder: damage(folder, RECORD_NAME, lambda b: b"[" * 10**5),
        "nested more than",
    ),
    "absurd numbers": (
        lambda folder: rewrite(folder, config={"radial_radius": 10**30}),
        "an integer beyond 64 bits",
    ),
    "seal renamed": (
        lambda folder: damage(folder, RECORD_NAME, lambda b: b.replace(b'"seal"', b'"sead"')),
        "unknown",
    ),
    "origin of another kind": (
        lambda folder: rewrite(folder, origin=[[1, 2]]),
        "origin holds something else",
    ),
    "record of another format": (
        lambda folder: rewrite(folder, format="x"),
        "no routing table of format",
    ),
    "record lacks a field": (
        lambda folder: damage(folder, RECORD_NAME, lambda b: b.replace(b"sha256", b"sha")),
        "lacks",
    ),
    "unknown config field": (lambda folder: rewrite(folder, config={"tiles": 3}), "unknown fields"),
    "config is no record": (lambda folder: rewrite(folder, config=3), "no valid routing table"),
    "config out of range": (
        lambda folder: rewrite(folder, config={"compression": 1e9}),
        "compression",
    ),
    "no pinned tile": (lambda folder: rewrite(folder, config={}), "config.tile is None"),
    "tensors cut short": (
        lambda folder: damage(folder, TENSORS_NAME, lambda b: b[:-8]),
        "is not the file",
    ),
    "tensors with one bit flipped": (
        lambda folder: damage(folder, TENSORS_NAME, lambda b: b[:-1] + bytes([b[-1] ^ 1])),
        "is not the file",
    ),
    "tensors of another kind": (
        lambda folder: swap_content(folder, b"junk"),
        "no valid routing table",
    ),
    "a tensor missing": (
        lambda folder: swap_tensors(folder, bands=torch.zeros(1, 1, 1).long()),
        "mid_tiles",
    ),
    "bands out of range": (
        lambda folder: swap_tensors(
            folder, bands=torch.full((1, 1, 1), 4), mid_tiles=torch.zeros(1, 1, 1).long()
        ),
        "bands is",
    ),
    "floating bands": (
        lambda folder: swap_tensors(
            folder, bands=torch.zeros(1, 1, 1), mid_tiles=torch.zeros(1, 1, 1).long()
        ),
        "bands is",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_damaged_table_is_refused(case, tmp_path):
    make_table().save(tmp_path)
    spoil, message = BAD_FILES[case]
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        RoutingTable.load(tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_every_flipped_bit_is_found_and_named(tmp_path, count):
    replace(make_table(), origin=((0.25,) * SAMPLES,) * 2).save(tmp_path)
    for path, _ in flip_bits(tmp_path, count):
        with pytest.raises(ValueError, match=re.escape(path.name)):
            RoutingTable.load(tmp_path)
    RoutingTable.load(tmp_path)


def test_tables_of_earlier_versions_load(tmp_path):
    table = make_table()
    table.save(tmp_path)
    path = tmp_path / RECORD_NAME
    record = {
        name: value
        for name, value in json.loads(path.read_text()).items()
        if name in ("format", "sha256", "config")
    }
    path.write_text(json.dumps(record, indent=2))
    loaded = RoutingTable.load(tmp_path)
    assert torch.equal(loaded.bands, table.bands)
    assert loaded.origin is None


def test_links_in_the_place_of_its_files_are_not_followed(tmp_path):
    """F114."""
    (tmp_path / "victim").write_text("precious")
    folder = tmp_path / "table"
    folder.mkdir()
    for name in (RECORD_NAME, TENSORS_NAME):
        for end in ("", ".part"):
            (folder / (name + end)).symlink_to(tmp_path / "victim")
    make_table().save(folder)
    RoutingTable.load(folder)
    assert (tmp_path / "victim").read_text() == "precious"


def test_what_does_not_fit_is_refused():
    bands = torch.zeros(2, 1, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"config\.tile is None"):
        RoutingTable(bands, bands, FreqFormerConfig())
    with pytest.raises(ValueError, match="mid_tiles is"):
        RoutingTable(bands, bands[:1], CONFIG)
    with pytest.raises(ValueError, match="mid_tiles differs"):
        RoutingTable(bands, torch.tensor([[[1, 2, 1]]]).expand(2, 1, 3), CONFIG)
    with pytest.raises(ValueError, match="bands is"):
        RoutingTable(bands[:, :0], bands[:, :0], CONFIG)
    timestep, logits = torch.rand(4), torch.randn(4, 1, 3, 3)
    for bad_time, bad_logits in (
        (timestep[:3], logits),
        (timestep, logits[..., :2]),
        (timestep, logits[:, 0]),
        (timestep[:0], logits[:0]),
    ):
        with pytest.raises(ValueError, match="observed is"):
            RoutingTable.freeze(bad_time, bad_logits, CONFIG)
    with pytest.raises(ValueError, match="out of range"):
        RoutingTable.freeze(timestep * 1000, logits, CONFIG)
    with pytest.raises(ValueError, match="out of range"):
        RoutingTable.freeze(timestep, logits * float("nan"), CONFIG)
    with pytest.raises(ValueError, match="bands out of range"):
        RoutingTable.freeze(timestep, torch.full((4, 1, 3), 4), CONFIG)
    with pytest.raises(ValueError, match="num_buckets is 0"):
        RoutingTable.freeze(timestep, logits, CONFIG, num_buckets=0)
    with pytest.raises(ValueError, match="budget is"):
        RoutingTable.freeze(
            timestep, logits.argmax(-1), CONFIG, costs=(1.0, 1.0, 1.0, 2.0), budget=0.5
        )


def test_a_layer_gets_its_own_bands_and_list_lengths():
    table = make_table()
    mid_tiles = table.mid_tiles.clone()
    mid_tiles[1, 1], mid_tiles[2, 1] = 2, 0
    table = replace(table, mid_tiles=mid_tiles)
    bands, configs = table.for_layer(1, 3, replace(CONFIG, tile=None, mid_tiles=9))
    assert torch.equal(bands, table.bands[:, 1])
    assert [config.mid_tiles for config in configs] == [5, 2, None, 5]
    assert {config.tile for config in configs} == {(2, 3, 4)}
    assert configs[3] is configs[0]
    with pytest.raises(ValueError, match="layer 2 of 3 heads"):
        table.for_layer(2, 3, CONFIG)
    with pytest.raises(ValueError, match="layer 0 of 4 heads"):
        table.for_layer(0, 4, CONFIG)
    for other in (replace(CONFIG, tile=(2, 2, 2)), replace(CONFIG, compression=8)):
        with pytest.raises(ValueError, match=r"table\.config is"):
            table.for_layer(0, 3, other)


@pytest.mark.parametrize(
    ("levels", "groups"), [((0.1, 0.2), [[0, 1]]), ((0.9, 0.1), [[0], [1]]), ((0.6, 0.9), [[0, 1]])]
)
def test_samples_whose_config_agrees_run_together(levels, groups):
    """Those of one step of a sampler, as they came: nothing is copied."""
    configs = [CONFIG, replace(CONFIG, mid_tiles=2)]
    query, allocation = torch.randn(2, 4, 3, 8), torch.tensor([[0, 1, 2], [2, 1, 0]])
    seen = []

    def attend(query, *, allocation, config, low_branch):
        seen.append((query, allocation, config))
        return query + 1

    out = attend_by_bucket(attend, (query,), allocation, configs, torch.tensor(levels))
    assert torch.equal(out, query + 1)
    assert len(seen) == len(groups)
    for (own, bands, config), group in zip(seen, groups, strict=True):
        assert torch.equal(own, query[group])
        assert torch.equal(bands, allocation[group])
        assert config == configs[int(levels[group[0]] >= 0.5)]
    assert (seen[0][0] is query) == (len(groups) == 1)
