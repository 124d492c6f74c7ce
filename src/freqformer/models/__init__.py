"""The video diffusion transformer and its pipeline, on diffusers."""

from freqformer._optional import needs

with needs("model"):
    from freqformer.models.pipeline import FreqFormerPipeline
    from freqformer.models.transformer import FreqFormerTransformer3DModel

__all__ = ["FreqFormerPipeline", "FreqFormerTransformer3DModel"]
