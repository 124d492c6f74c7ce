"""Routing tables for trained dense models, from measured errors and without training."""

from freqformer.calibration.candidates import Candidates
from freqformer.calibration.choice import Calibration, Choice
from freqformer.calibration.run import calibrate

__all__ = ["Calibration", "Candidates", "Choice", "calibrate"]
