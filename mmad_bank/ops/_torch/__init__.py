"""The ops in plain PyTorch, for devices without native kernels; one module per op, of its name."""
