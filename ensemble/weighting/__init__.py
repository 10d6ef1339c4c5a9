"""Weights of the runs: convex weights, greedy selection, stacking, weighted averages."""
