"""Core ML packages: export, compression, labels."""
