"""One network trained by several processes: how they talk on the host, and what their devices exchange in an update."""
