"""Routing tables for trained dense models, from measured errors and without training."""

from freqformer.calibration.candidates import Candidates
from freqformer.calibration.choice import Calibration, Choice
from freqformer.calibration.pipelines.choice import PipelineCalibration, PipelineChoice
from freqformer.calibration.pipelines.run import calibrate_pipeline
from freqformer.calibration.pipelines.settings import CalibrationSettings
from freqformer.calibration.run import calibrate

__all__ = [
    "Calibration",
    "CalibrationSettings",
    "Candidates",
    "Choice",
    "PipelineCalibration",
    "PipelineChoice",
    "calibrate",
    "calibrate_pipeline",
]
