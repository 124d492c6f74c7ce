"""The quality study: which attention trains best at equal parameters, data, steps and attention
FLOPs."""
