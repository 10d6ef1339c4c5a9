"""The training loop and everything around a run. Engines apply; what is decided, is decided here."""
