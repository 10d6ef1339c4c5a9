"""From an order of samples to batches of fixed shape: sampling, threads, worker processes."""
