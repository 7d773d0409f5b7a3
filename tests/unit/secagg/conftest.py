"""Lets the tests of this folder import what they share, and saves them work that one process need not repeat."""

import sys
from functools import lru_cache
from pathlib import Path

import pytest

from medveil.secagg import collecting, server_checks, site_checks
from medveil.secagg.identity import verify

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def each_signature_once(monkeypatch):
    """All sites of a test live in one process: what one of them has verified need not be computed again."""
    cached = lru_cache(maxsize=None)(verify)
    for module in (site_checks, server_checks, collecting):
        monkeypatch.setattr(module, "verify", cached)
