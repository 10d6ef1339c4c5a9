"""Several processes that train one run together: what they tell each other on the host, and where each prints."""
