"""The complexity model and simulator: exact counts from plans, time from fitted rooflines, 64K
to 1M tokens."""

from freqformer._renamed import moved_names
from freqformer.simulate.model.allocations import Routing
from freqformer.simulate.model.efficiency import Efficiency, load_efficiency
from freqformer.simulate.model.hardware import load_hardware
from freqformer.simulate.model.presets import PRESETS
from freqformer.simulate.model.profiles import ProfileError
from freqformer.simulate.model.scenarios import Scenario, scenario
from freqformer.simulate.model.simulation import Result, simulate
from freqformer.simulate.model.transformers import load_model

__all__ = [
    "PRESETS",
    "Efficiency",
    "ProfileError",
    "Result",
    "Routing",
    "Scenario",
    "load_efficiency",
    "load_hardware",
    "load_model",
    "scenario",
    "simulate",
]

__getattr__ = moved_names(
    __name__,
    {
        "Calibration": "freqformer.simulate.model.efficiency.Efficiency",
        "load_calibration": "freqformer.simulate.model.efficiency.load_efficiency",
    },
)
