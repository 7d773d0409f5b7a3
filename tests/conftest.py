"""What every test shares: no user's folders are touched, real data only where MEDVEIL_DATA says."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))  # tests are imported by path, what they share by name

# In CI the examples are the same every time; elsewhere new ones are tried on every run.
settings.register_profile("ci", derandomize=True, deadline=None)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory, monkeypatch):
    """Keys and caches go to a temporary folder."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("MEDVEIL_HOME", str(home))
    monkeypatch.setenv("MEDVEIL_CACHE", str(home / "cache"))


# Minutes each: begun last, one of two processes would end long after the other.
_LONGEST = ("test_readme.py", "test_trial.py", "test_infer.py", "test_inversion.py", "test_claims.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: _LONGEST.index(item.path.name) if item.path.name in _LONGEST else len(_LONGEST))
    given = os.environ.get("MEDVEIL_DATA")
    if given and Path(given).is_dir():
        return
    reason = "real data: set MEDVEIL_DATA to the folder that holds pneumoniamnist_28, hippocampus_mr_nifti, ..."
    for item in items:
        if item.get_closest_marker("real_data"):
            item.add_marker(pytest.mark.skip(reason=reason))
