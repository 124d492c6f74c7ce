"""Triton implementation."""
