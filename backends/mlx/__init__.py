"""The MLX engine: Metal on Apple silicon, the CPU on Linux. `session.open` is its door.

Every array of a session belongs to the thread that opened it: use a session on one thread, and hand it NumPy.
"""

from backends.mlx import blas

# Here, because it must come before the first import of MLX.
blas.lend()
