"""Where Tandem keeps what it can make again: a folder of the user's, outside of data sets and runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$TANDEM_CACHE`, else `tandem` below `$XDG_CACHE_HOME` or `~/.cache`; it may be deleted at any time."""
    own = os.environ.get("TANDEM_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tandem"
