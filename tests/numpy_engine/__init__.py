"""A third engine for tests, "numpy": softmax regression on downscaled images. Importing this registers it.

The loop, resume and campaigns are tested with it at once and without a framework; it ignores the architecture.
"""

from __future__ import annotations

import backends
from infer import runtimes
from models import auto

backends.ENGINES["numpy"] = backends.Engine("tests.numpy_engine.session", (), builds_networks=False)
auto.SPEEDS["numpy cpu"] = 1000.0
runtimes.RUNTIMES["numpy"] = runtimes.Runtime("", (), "tests.numpy_engine.predictor")
