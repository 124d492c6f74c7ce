"""Training of diffusers' pipelines: their transformers, low-rank additions to them, and what is
saved of it."""
