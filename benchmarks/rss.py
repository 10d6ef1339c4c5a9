"""The peak of a process's memory, in bytes on every platform."""

from __future__ import annotations

import resource
import sys


def peak(who: int = resource.RUSAGE_SELF) -> int:
    """The largest resident set of this process, or of its children that have ended; macOS tells bytes, Linux KiB."""
    return resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
