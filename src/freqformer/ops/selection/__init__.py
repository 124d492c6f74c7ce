"""Which key tiles a MID head sees, where that depends on data, and how its low summaries are
counted then."""
