"""Frequency attention inside models of other libraries."""
