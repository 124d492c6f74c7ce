"""Views of what the bands hold and what a run did: numbers, figures and videos."""

from freqformer.analysis.error_by_band import ErrorByBand, error_by_band

__all__ = ["ErrorByBand", "error_by_band"]
