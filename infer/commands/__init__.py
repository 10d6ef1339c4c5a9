"""The commands of `python -m infer`, one file each."""

INTERRUPTED = 130  # the exit code after Ctrl-C
