"""The prologue as two or three Triton launches, and its backward as three: `launch` and
`launch_backward` are the host side, `arguments` what kernels take, each file with kernel in its
name one of them."""
