"""Every engine in turn."""

from __future__ import annotations

import pytest

import backends


@pytest.fixture(params=backends.ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)
