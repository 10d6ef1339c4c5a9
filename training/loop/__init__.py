"""The training loop of one fold: trainer, state, checkpoints, evaluation, averaging."""
