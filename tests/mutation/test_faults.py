"""The list of faults fits the source. Whether tests catch them: `make mutations`."""

from __future__ import annotations

import ast
import json
from dataclasses import replace

import pytest
from tests.mutation import __main__ as mutation
from tests.mutation import gluon
from tests.mutation.__main__ import FAULTS
from tests.mutation.faults import ROOT, Fault, digest, faulty


@pytest.mark.parametrize("fault", [*FAULTS, *gluon.FAULTS], ids=lambda fault: fault.name)
def test_a_fault_applies_to_the_source_as_it_is(fault: Fault) -> None:
    ast.parse(faulty(fault))
    assert (ROOT / fault.tests).is_file()


def test_a_fault_whose_text_is_gone_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"occurs 0 times in src/freqformer/ops/block_sparse/triton/tasks\.py"
    ):
        faulty(replace(FAULTS[0], old="no such text"))


def test_a_fault_runs_again_where_its_file_has_changed() -> None:
    done = {fault: {"of": digest(fault)} for fault in FAULTS}
    assert mutation.to_run(done, again=False, only="") == []
    changed, new, *_ = FAULTS
    done[changed] = {"of": "of older code"}
    del done[new]
    assert mutation.to_run(done, again=False, only="") == [changed, new]
    assert mutation.to_run(done, again=False, only="distributed") == []
    assert len(mutation.to_run(done, again=True, only="distributed")) >= 5
    with pytest.raises(ValueError, match="only is 'no such word'; a part of a fault's file"):
        mutation.to_run(done, again=False, only="no such word")


def test_faults_of_gluon_are_many_and_each_has_checks() -> None:
    checks = (ROOT / "tests/support/gluon_checks.py").read_text(encoding="utf-8")
    assert len({fault.name for fault in gluon.FAULTS}) == len(gluon.FAULTS) >= 25
    for fault in gluon.FAULTS:
        assert fault.checks
        assert all(f'"{name}": Check(' in checks for name in fault.checks), fault.name


def test_faults_that_need_a_gpu_are_named(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gluon, "RESULTS", tmp_path / "results.json")
    told = f"{len(gluon.FAULTS)} faults in the Gluon launches need a Hopper GPU and were not run"
    assert mutation.of_gluon().startswith(told)
    assert "none has run anywhere" in mutation.of_gluon()
    found = {
        fault.name: {"name": fault.name, "old": fault.old, "new": fault.new, "commit": "abc1234"}
        | {"ended": ended, "caught_by": by}
        for fault, ended, by in zip(
            gluon.FAULTS, ("failed", "hung", "passed"), ("windows", "windows", None), strict=False
        )
    }
    summary = gluon.write(gluon.RESULTS, found)
    assert summary["missed"] == [gluon.FAULTS[2].name]
    assert summary["not_run"] == [fault.name for fault in gluon.FAULTS[3:]]
    assert "last time 2 were caught, at abc1234" in mutation.of_gluon()


@pytest.mark.skipif(not gluon.RESULTS.is_file(), reason="no results of a Hopper GPU are committed")
def test_the_committed_results_of_gluon_are_of_this_list() -> None:
    results = json.loads(gluon.RESULTS.read_text(encoding="utf-8"))
    assert [found["name"] for found in results["faults"]] == [fault.name for fault in gluon.FAULTS]
    assert len(gluon.read(gluon.RESULTS)) == results["caught"] >= 0.95 * len(gluon.FAULTS)


def test_the_committed_results_are_of_this_list() -> None:
    results = json.loads((ROOT / "tests/mutation/results.json").read_text(encoding="utf-8"))
    assert [found["name"] for found in results["faults"]] == [fault.name for fault in FAULTS]
    caught = [found for found in results["faults"] if found["caught_by"] is not None]
    for found in caught:
        assert (ROOT / found["caught_by"].partition("::")[0]).is_file(), found["name"]
    assert results["caught"] == len(caught) >= 0.95 * len(FAULTS)
