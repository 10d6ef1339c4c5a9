"""What a model is, by name: architecture, preprocessing, defaults, weights. No framework is imported here."""
