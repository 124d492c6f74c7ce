"""Latents and text embeddings of a folder of videos, computed once: `freqformer cache`. Needs
diffusers, and transformers for text."""
