"""Train image classifiers with PyTorch on CUDA, MPS or the CPU. `--help` explains every setting."""

import sys

from training.cli import main

if __name__ == "__main__":
    sys.exit(main("torch"))
