"""The complexity model and simulator: exact counts from plans, time from calibrated rooflines, 64K to 1M tokens."""

from freqformer.simulate.allocations import Routing
from freqformer.simulate.hardware import load_hardware
from freqformer.simulate.profiles import ProfileError
from freqformer.simulate.scenarios import Result, Scenario, scenario, simulate
from freqformer.simulate.shapes import load_model

__all__ = ["ProfileError", "Result", "Routing", "Scenario", "load_hardware", "load_model", "scenario", "simulate"]
