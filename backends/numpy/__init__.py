"""The NumPy engine: softmax regression on downscaled images, so that the loop is tested without a framework."""
