"""The list of faults fits the source. Whether tests catch them: `make mutations`."""

from __future__ import annotations

import ast
import json
from dataclasses import replace

import pytest
from tests.mutation.faults import FAULTS, ROOT, Fault, faulty


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_applies_to_the_source_as_it_is(fault: Fault) -> None:
    ast.parse(faulty(fault))
    assert (ROOT / fault.tests).is_file()


def test_a_fault_whose_text_is_gone_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"occurs 0 times in src/freqformer/ops/block_sparse/triton/tasks\.py"
    ):
        faulty(replace(FAULTS[0], old="no such text"))


def test_the_committed_results_are_of_this_list() -> None:
    results = json.loads((ROOT / "tests/mutation/results.json").read_text(encoding="utf-8"))
    assert [found["name"] for found in results["faults"]] == [fault.name for fault in FAULTS]
    caught = [found for found in results["faults"] if found["caught_by"] is not None]
    assert results["caught"] == len(caught) >= 0.95 * len(FAULTS)
