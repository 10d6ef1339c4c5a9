"""Train image classifiers with MLX on Apple silicon (on Linux: its CPU build). `--help` explains every setting."""

import sys

from training.cli import main

if __name__ == "__main__":
    sys.exit(main("mlx"))
