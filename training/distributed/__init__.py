"""Several processes that train one run together: what they tell each other on the host, where each prints, and how it ended."""
