"""Ensembles: what is fitted on out-of-fold logits, and how it is applied. NumPy and SciPy only."""
