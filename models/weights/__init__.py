"""Weights: located, read, renamed to timm's names and fitted to a spec."""
