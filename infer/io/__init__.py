"""Input and output of inference: images, archives, journals, submissions."""
