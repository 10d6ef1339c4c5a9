"""Several processes that train one run together: what they tell each other, where each prints, how it ended."""
