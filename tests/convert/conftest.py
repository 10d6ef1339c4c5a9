from __future__ import annotations

from pathlib import Path

import pytest

from convert.coreml import mlpackage
from tests.convert.networks import Network, build


@pytest.fixture(scope="session")
def vit() -> Network:
    return build("vit")


@pytest.fixture(scope="session")
def vit_package(vit: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mlpackage.write(vit.classifier, vit.card, tmp_path_factory.mktemp("vit") / "vit.mlpackage")
