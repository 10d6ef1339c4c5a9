"""A training step against the bare step and against other libraries' loops, with either engine."""
