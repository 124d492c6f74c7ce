"""Old names still work, name the new ones, and old files of what kernels achieve load."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

import freqformer.simulate
from freqformer.simulate import Efficiency, load_efficiency, scenario
from freqformer.simulate.model.settings import Request, scenarios

NEW = {"Calibration": Efficiency, "load_calibration": load_efficiency}


@pytest.mark.parametrize("home", ["freqformer.simulate", "freqformer.simulate.calibration"])
@pytest.mark.parametrize("name", list(NEW))
def test_old_names_are_the_new_objects(home, name):
    with pytest.warns(FutureWarning, match=rf"{home}.{name} is now freqformer.simulate.model\."):
        found = getattr(import_module(home), name)
    assert found is NEW[name]
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        getattr(import_module(home), "Nothing")  # noqa: B009


def test_public_names_are_there():
    assert all(hasattr(freqformer.simulate, name) for name in freqformer.simulate.__all__)
    assert {"Routing", "Scenario", "Result", "scenario", "simulate", "load_model"} <= set(
        freqformer.simulate.__all__
    )


def test_old_settings_are_the_new_ones():
    with pytest.warns(FutureWarning, match="calibration is now efficiency"):
        case = scenario("freqformer", "h200", 4096, calibration="cpu")
    assert case == scenario("freqformer", "h200", 4096, efficiency="cpu")
    typed = Request("freqformer", "h200", "4096", "paper", ["low_branch=true", "efficiency=cpu"])
    old = Request("freqformer", "h200", "4096", "paper", ["low_beside=true", "calibration=cpu"])
    with pytest.warns(FutureWarning) as warned:
        found = scenarios(old)
    assert [str(one.message).partition(";")[0] for one in warned] == [
        "--set low_beside is now low_branch",
        "--set calibration is now efficiency",
    ]
    assert found == scenarios(typed)
    with pytest.warns(FutureWarning, match="low_beside is now low_branch"):
        changed = replace(case, preset="paper", low_beside=True)
    assert changed == replace(case, preset="paper", low_branch=True)


@pytest.mark.parametrize(("old", "new"), [("timed", "timestep"), ("learned", "hard")])
def test_old_words_for_routing_are_the_new_ones(old, new):
    with pytest.warns(FutureWarning, match=f"--set routing={old} is now routing={new}"):
        found = scenarios(Request("freqformer", "h200", "4096", settings=[f"routing={old}"]))
    assert found == scenarios(Request("freqformer", "h200", "4096", settings=[f"routing={new}"]))


def test_a_file_saved_under_the_old_name_loads(tmp_path):
    """As `calibrate-hardware --output` wrote it: the fields have kept their names."""
    data = Path(freqformer.simulate.__file__).parent / "data" / "efficiency" / "h200.json"
    saved = tmp_path / "calibration.json"
    values = json.loads(data.read_text(encoding="utf-8"))
    saved.write_text(json.dumps(values), encoding="utf-8")
    assert load_efficiency(saved).attention_rate == values["attention_rate"]
