"""How much each run counts: convex weights, greedy selection, stacking, weighted averages."""
