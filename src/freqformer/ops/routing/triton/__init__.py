"""The live router as two Triton launches: `launch` is the host side, `forward` the kernels."""
