"""The commands of `python -m infer`, one file each."""
