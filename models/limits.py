"""Image sizes and batches that a network cannot take, asked of its spec before a run and without a framework.

Each rule is the arithmetic of the network's own strides, patches and windows: what it refuses fails in timm, and what
it lets through runs (`tests/unit/test_limits.py`).
"""
