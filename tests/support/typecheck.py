"""The run-time type checker that tests/conftest.py puts on the package."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""beartype, where an int is a float too, as in static typing."""
