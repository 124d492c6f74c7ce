"""Whole small pipelines of every family: one call enables them, and takes them back."""

from __future__ import annotations
