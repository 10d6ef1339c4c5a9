"""Out-of-fold predictions: read from runs, aligned by image, memory-mapped."""
