"""The page about all runs of a folder: `python -m training board`. It reads runs and changes nothing."""
