"""A trained dense model turned into a FreqFormer: windows or best tiles, and gated LOW branches,
that learn to give what dense attention gave."""

from freqformer.conversion.config import ConvertConfig
from freqformer.conversion.run import convert

__all__ = ["ConvertConfig", "convert"]
