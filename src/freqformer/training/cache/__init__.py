"""Latents and text embeddings of a folder of videos, computed once: `freqformer cache`. Needs
diffusers, and transformers for text."""

from importlib import import_module

from freqformer._optional import needs

with needs("train"):
    import_module("diffusers")
