"""Flow-matching training on videos: objective, data, checkpoints and the loop. Needs diffusers and
accelerate."""
