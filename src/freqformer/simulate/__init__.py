"""The complexity model and simulator: exact counts from plans, time from calibrated rooflines, 64K
to 1M tokens."""

from freqformer.simulate.allocations import Routing
from freqformer.simulate.hardware import load_hardware
from freqformer.simulate.presets import PRESETS
from freqformer.simulate.profiles import ProfileError
from freqformer.simulate.scenarios import Scenario, scenario
from freqformer.simulate.shapes import load_model
from freqformer.simulate.simulation import Result, simulate

__all__ = [
    "PRESETS",
    "ProfileError",
    "Result",
    "Routing",
    "Scenario",
    "load_hardware",
    "load_model",
    "scenario",
    "simulate",
]
