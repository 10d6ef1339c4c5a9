"""Tar shards read front to back while training: their order, their transfer from a URL, and what is kept of them."""
