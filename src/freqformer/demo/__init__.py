"""The demo: a real video in, a trained model, a generated video and a report out."""

TRAIN_SECONDS = 240.0
"""The clock that limits training. 300 steps take 204 s on two cores of 2026 that do nothing
else."""
