"""Routing tables for pipelines, by what each step's errors do to the video."""
