"""What the coordinator is about to have opened, written down before any site is told.

Sites open a contribution over one set of sites only (:mod:`medveil.federation.secure.outbox`). A coordinator that dies
between telling them and committing the round must therefore ask for the same set again, whoever is there by then.
"""

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from medveil.disk import replace_file, sync_folder
from medveil.errors import ResumeError, TooFewSitesError
from medveil.federation.messages import Purpose as Statistic
from medveil.federation.secure.origin import Purpose

Summed = Purpose | Statistic
"""A round's contributions or scores, or a statistic outside the rounds."""


class Decided:
    """Over which sites the sums of the latest round are opened; on disk when :meth:`note` returns.

    Args:
        path: of the file; None forgets with the process.
        watch: told the sites that a round goes on without, once that is decided.

    Raises:
        ResumeError: the file is damaged.
    """

    def __init__(
        self, path: Path | None = None, *, watch: Callable[[Collection[str]], None] = lambda _sites: None
    ) -> None:
        self._path, self._watch = path, watch
        self._round = 0
        self._sites: dict[str, dict[str, bool]] = {}
        if path is not None and path.exists():
            self._read(path)

    def note(self, purpose: Summed, round_number: int, included: Mapping[str, bool]) -> None:
        """Write down which sites of a group are in its sum.

        Args:
            purpose: what is summed.
            round_number: that it is of, for a statistic the one after the last; an earlier round's notes are dropped.
            included: of every site of the group, whether it is in the sum.

        Raises:
            TooFewSitesError: the same sum was to be opened over other sites before: it must not be asked for.
        """
        before = self.of(purpose, round_number)
        needed = [site for site in included if before.get(site, included[site]) != included[site]]
        if needed:
            raise _not_the_same(needed)
        if round_number != self._round:
            self._round, self._sites = round_number, {}
        if before.items() >= included.items():
            return
        self._sites[purpose] = {**before, **included}
        if self._path is not None:
            replace_file(self._path, json.dumps({"round": self._round, "sites": self._sites}).encode())
            sync_folder(self._path.parent)
        if purpose == "round":
            self._watch([site for site, there in self._sites[purpose].items() if not there])

    def of(self, purpose: Summed, round_number: int) -> dict[str, bool]:
        """Which sites are in a sum that was decided, and which are not; a site that is in neither is free."""
        return dict(self._sites.get(purpose, {})) if round_number == self._round else {}

    def _read(self, path: Path) -> None:
        try:
            noted = json.loads(path.read_text(encoding="utf-8"))
            self._round = int(noted["round"])
            self._sites = {
                purpose: {str(site): bool(there) for site, there in sites.items()}
                for purpose, sites in noted["sites"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResumeError(
                "The note of what the sites were asked to open is damaged",
                got=type(error).__name__,
                expected="what medveil wrote",
                remedy="restore it from a backup, or start a new run",
            ) from None


def _not_the_same(sites: Collection[str]) -> TooFewSitesError:
    return TooFewSitesError(
        "A round was to be opened over certain sites before an interruption, and they are not the same now",
        got=f"other than before: {', '.join(sorted(sites))}",
        expected="the same sites: each opens what it gave over one set of sites only",
        remedy="bring those sites back; the run goes on by itself",
    )


def check_there(decided: Mapping[str, bool], alive: Collection[str]) -> None:
    """Refuse to begin a sum again without a site that was in it.

    Raises:
        TooFewSitesError: one is not there.
    """
    absent = [site for site, there in decided.items() if there and site not in alive]
    if absent:
        raise _not_the_same(absent)
