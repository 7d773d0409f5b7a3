"""Put on PYTHONPATH of a federation's processes by ``network_dropouts.py``: wraps the programs of its job processes.

Only a process that the engine started for a job is touched, and only where MEDVEIL_DROPOUTS names a control folder.
"""

import os
import sys
from importlib.machinery import PathFinder

_PROGRAMS = {
    "medveil.federation.engine.site_process": ("medveil.connect.site_program", "wrap_site"),
    "medveil.federation.engine.server_process": ("medveil.connect.coordinator_program", "wrap_server"),
}


class _Finder:
    """Finds one module, and wraps what it needs once it was executed."""

    def __init__(self, name, wrapper):
        self._name, self._wrapper = name, wrapper

    def find_spec(self, name, path=None, target=None):
        """The module's own spec, with a loader that wraps afterwards."""
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        execute = spec.loader.exec_module

        def execute_and_wrap(module):
            execute(module)
            import dropout_seam

            getattr(dropout_seam, self._wrapper)(module)

        spec.loader.exec_module = execute_and_wrap
        return spec


if "MEDVEIL_DROPOUTS" in os.environ:
    for _module, _what in _PROGRAMS.items():
        if _module in sys.orig_argv:
            sys.meta_path.insert(0, _Finder(*_what))
