"""A site's memory of the sums that it gave one vector to, so that no statistic is opened twice over other sites."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from medveil.disk import replace_file, sync_folder
from medveil.errors import AuthenticityError


class TallyNotes:
    """What was summed in one run at one site; on disk when a method returns.

    A sum over all sites and a sum over all but one differ by that one site's vector; many models' test scores tell more
    of the test images than one model's. So a run's statistic has one origin, and is opened over one set of sites.

    Args:
        path: of the file; made with the first note.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def begin(self, purpose: str, origin: str) -> None:
        """Note what a statistic is computed from, before it leaves.

        Raises:
            AuthenticityError: it left before, computed from something else.
        """
        notes = self._read()
        noted = notes.setdefault(purpose, {"origin": origin, "sites": None})
        if noted["origin"] != origin:
            raise AuthenticityError(
                "The server asks for the same statistic again, from other weights",
                got=f"{purpose}, weights {origin[:12]}",
                expected=f"weights {noted['origin'][:12]}",
                remedy="start a new run",
            )
        self._write(notes)

    def accept(self, purpose: str, sites: Sequence[str]) -> None:
        """Note over which sites it may be opened.

        Raises:
            AuthenticityError: other sites were noted before.
        """
        notes = self._read()
        names = sorted(sites)
        if notes[purpose]["sites"] not in (None, names):
            raise AuthenticityError(
                "The server wants to open the same statistic a second time, over other sites",
                got=", ".join(names),
                expected=", ".join(notes[purpose]["sites"]),
                remedy="start a new run",
            )
        notes[purpose]["sites"] = names
        self._write(notes)

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self._path.exists():
            return {}
        return cast("dict[str, dict[str, Any]]", json.loads(self._path.read_text(encoding="utf-8")))

    def _write(self, notes: dict[str, dict[str, Any]]) -> None:
        replace_file(self._path, json.dumps(notes).encode())
        sync_folder(self._path.parent)
