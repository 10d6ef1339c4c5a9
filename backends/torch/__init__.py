"""The PyTorch engine: CUDA, Apple's MPS, or the CPU. `session.open` is its door."""
