"""A site's own memory of what it is about to contribute, so that a crash neither repeats a release nor leaks by one.

Before a vector is masked and sent, it is written down; before a sum over certain sites may be opened, so are their
names. After a crash the same vector is sent again: the release that was charged is the one that is made. And it can be
opened over the same sites only: two sums over different sites would give their difference away, which holds one site's
vector with one site's noise.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from medveil.disk import replace_file, sync_folder
from medveil.errors import AuthenticityError, ProtocolError
from medveil.federation.snapshot import Snapshot, load_snapshot, save_snapshot
from medveil.secagg.ring import RingVector


class Outbox:
    """Holds the contribution to one round at a time; a round has one contribution, whatever it is asked for again.

    A round is answered from one set of weights only. Otherwise a server could have one site send its vector again and
    the others make new ones from elsewhere in between: the mean over many such sums has that one site's noise only.

    Args:
        folder: of the site; made where there is none. Whoever reads it sees the site's contribution unmasked.
    """

    def __init__(self, folder: Path) -> None:
        _make(folder)
        self._vector = folder / "contribution.safetensors"
        self._opened = _Members(folder / "included.json")
        self._scored = _Members(folder / "scored.json")
        self._of: tuple[int, str] | None = None

    def contribution(self, round_number: int, start: str, compute: Callable[[], RingVector]) -> RingVector:
        """What was written down for this round; else what ``compute`` gives, once it is on disk.

        Args:
            round_number: counted from 1.
            start: :func:`~medveil.federation.secure.origin.fingerprint` of the weights that the contribution starts
                from.
            compute: makes a new contribution.

        Raises:
            AuthenticityError: the round is past, or was begun from other weights.
        """
        kept = self._kept(round_number, start)
        self._of = (round_number, start)
        if kept is not None:
            return cast("RingVector", kept.tensors["vector"])
        made = compute()
        save_snapshot(Snapshot(round_number, {"vector": made}, {"start": start}), self._vector)
        sync_folder(self._vector.parent)
        return made

    def has(self, round_number: int, start: str) -> bool:
        """Whether this round's contribution was written down before; if not, none ever left this site.

        Raises:
            AuthenticityError: as for :meth:`contribution`.
        """
        return self._kept(round_number, start) is not None

    def clear(self) -> None:
        """Remove the unmasked contribution, once the last sum is opened; what was opened over whom stays."""
        self._vector.unlink(missing_ok=True)

    def accept(self, members: Sequence[str]) -> None:
        """Write down over whom the contribution may be opened, before anything is told that would open it.

        Raises:
            AuthenticityError: it was opened, or nearly, over other sites before.
            ProtocolError: nothing was contributed.
        """
        if self._of is None:
            raise ProtocolError("A sum is to be opened that this site gave nothing to")
        self._opened.note(self._of, members)

    def accept_scores(self, round_number: int, start: str, members: Sequence[str]) -> None:
        """The same for the validation scores of a round's weights, which are computed anew whenever they are asked for.

        Raises:
            AuthenticityError: scores of the same weights were opened, or nearly, over other sites before, whatever
                the round was called; or the round is past.
        """
        self._scored.note((round_number, start), members)

    def _kept(self, round_number: int, start: str) -> Snapshot | None:
        """What is held, if it is of this round; nothing where the round is a later one."""
        kept = load_snapshot(self._vector)
        if kept is None or kept.round < round_number:
            return None
        if round_number < kept.round:
            raise _past(round_number, kept.round)
        if kept.facts["start"] != start:
            raise AuthenticityError(
                "The server asks for the same round again from other weights",
                got=f"round {round_number}, weights {start[:12]}",
                expected=f"weights {kept.facts['start'][:12]}",
                remedy="start a new run; a coordinator that lost its checkpoints cannot go on with this one",
            )
        return kept


class _Members:
    """A file that says over which sites things were opened, by the weights that they were computed from.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def note(self, of: tuple[int, str], members: Sequence[str]) -> None:
        """Write down the sites, durably.

        Args:
            of: round and weights.
            members: names.

        Raises:
            AuthenticityError: other sites were written down for the same weights, other weights for the same round, or
                the round is past.
        """
        round_number, start = of
        names = sorted(members)
        noted = self._read()
        if round_number < noted["latest"]:
            raise _past(round_number, noted["latest"])
        if round_number == noted["latest"] and noted.get("start", start) != start:
            raise AuthenticityError(
                "The server asks for the same round again from other weights",
                got=f"round {round_number}, weights {start[:12]}",
                expected=f"weights {noted['start'][:12]}",
                remedy="start a new run; a coordinator that lost its checkpoints cannot go on with this one",
            )
        place = noted["of"].get(start)
        earlier = None if place is None else noted["lists"][place]
        if earlier is not None and earlier != names:
            raise AuthenticityError(
                "The server wants to open the same contributions a second time, over other sites",
                got=", ".join(names),
                expected=", ".join(earlier),
                remedy="go on with the sites that took part before the interruption, or start a new run",
            )
        if earlier is None or noted["latest"] < round_number:
            lists = noted["lists"] if names in noted["lists"] else [*noted["lists"], names]
            places = {**noted["of"], start: lists.index(names)}
            self._write({"latest": round_number, "start": start, "lists": lists, "of": places})

    def _read(self) -> dict[str, Any]:
        if not self._path.exists():
            return {"latest": 0, "lists": [], "of": {}}
        return cast("dict[str, Any]", json.loads(self._path.read_text(encoding="utf-8")))

    def _write(self, noted: dict[str, Any]) -> None:
        replace_file(self._path, json.dumps(noted).encode())
        sync_folder(self._path.parent)


def _past(asked: int, latest: int) -> AuthenticityError:
    return AuthenticityError(
        "The server asks for a round that is past",
        got=f"round {asked}",
        expected=f"round {latest} or a later one",
        remedy="start a new run; a coordinator that lost its checkpoints cannot go on with this one",
    )


def _make(folder: Path) -> None:
    """Make the folder, and sync what now names it, so that a power cut does not lose it."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in new:
        sync_folder(path.parent)
