"""Whether this machine and installation can run Tandem: `python -m doctor`. Needs the standard library alone."""
