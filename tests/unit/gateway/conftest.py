"""What several of these tests import stands beside them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from catalogue_world import a_catalogue

from tessera.gateway.core.catalogue import Catalogue


@pytest.fixture
def catalogue() -> Catalogue:
    """Model `digits`, version 1, variant `aten-fp32`, on one node."""
    return a_catalogue()
