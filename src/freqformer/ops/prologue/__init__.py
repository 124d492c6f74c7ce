"""From queries, keys and values to what each band's operator reads."""

from freqformer.ops.prologue.reference import BandInputs, prepare

__all__ = ["BandInputs", "prepare"]
