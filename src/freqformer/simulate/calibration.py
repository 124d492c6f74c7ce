"""Old names of `freqformer.simulate.model.efficiency`: they work for one more release, and warn."""

from __future__ import annotations

from freqformer._renamed import moved_names

__getattr__ = moved_names(
    __name__,
    {
        "Calibration": "freqformer.simulate.model.efficiency.Efficiency",
        "load_calibration": "freqformer.simulate.model.efficiency.load_efficiency",
    },
)
