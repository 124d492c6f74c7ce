"""The attention launch for Hopper GPUs, in Gluon: warps specialised into one that fetches and eight
that compute."""
