"""The sound of clips, for pipelines of diffusers whose transformer makes sound with the video."""
