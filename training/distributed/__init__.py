"""Several processes that train one run together: their decisions, their logs, and how the run ended."""
