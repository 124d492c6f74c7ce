"""The block-sparse attention in Triton: `launch` and `launch_backward` hold the host side; `join`,
`forward` and `bwd_*` the kernels; `tasks`, `blocks` and `softmax` what they share."""
