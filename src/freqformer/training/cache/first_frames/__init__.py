"""What image-to-video pipelines of diffusers tell their transformer of a first frame, where the
latents of a clip don't say it: a file and a row each."""
