"""How tests start processes of their own: from a server that has imported everything already, or on macOS anew, since
there nothing may fork after Metal or its libraries were loaded."""

from __future__ import annotations

import multiprocessing
import sys
from multiprocessing.context import ForkServerContext, SpawnContext


def fresh(*preload: str) -> ForkServerContext | SpawnContext:
    """A context whose processes share nothing with this one; `preload` names what its server imports."""
    if sys.platform == "darwin":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    return context
