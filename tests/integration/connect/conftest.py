"""One federation of real processes for the whole folder: starting it takes seconds."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests are imported by path


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    pytest.importorskip("nvflare")
    from running import Running

    federation = Running(tmp_path_factory.mktemp("running"))
    federation.start_all()
    try:
        with_all = federation.until(lambda: _connected(federation), 60)
        assert with_all
        yield federation
    finally:
        federation.release()
        federation.stop()


def _connected(federation):
    from medveil.errors import FederationError

    try:
        with federation.login() as login:
            return set(login.connected()) == set(federation.sites)
    except FederationError:
        return False
