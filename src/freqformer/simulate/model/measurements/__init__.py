"""Committed benchmark results, as measurements that an efficiency can be fitted to."""

from freqformer.simulate.model.measurements.files import read_peaks, read_results, read_shares

__all__ = ["read_peaks", "read_results", "read_shares"]
