"""Latents and text embeddings of a folder of videos, computed once by `freqformer cache`, and the
clips that training makes of them. Needs diffusers, and transformers for text."""

from freqformer._optional import needs

with needs("train"):
    # Models need it too, by an extra that doesn't bring what reads videos.
    import diffusers  # noqa: F401
