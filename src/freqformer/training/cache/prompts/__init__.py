"""Pipelines of diffusers that tell their transformer a prompt otherwise than by the last layer of
one encoder: a file and a row each."""
