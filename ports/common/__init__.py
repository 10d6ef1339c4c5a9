"""What the architectures share in MLX."""
