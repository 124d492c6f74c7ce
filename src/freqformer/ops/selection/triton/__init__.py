"""The selection as one Triton launch: `launch` is the host side, `forward` the kernel."""
