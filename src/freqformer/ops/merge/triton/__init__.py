"""The merge as one Triton launch, and its backward as two: `launch` is the host side, `forward` and
`backward` the kernels."""
