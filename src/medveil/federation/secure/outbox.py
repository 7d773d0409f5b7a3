"""A site's own memory of what it is about to contribute, so that a crash neither repeats a release nor leaks by one.

Before a vector is masked and sent, it is written down; before a sum over certain sites may be opened, so are their
names. After a crash the same vector is sent again: the release that was charged is the one that is made. And it can be
opened over the same sites only: two sums over different sites would give their difference away, which holds one site's
vector with one site's noise.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from medveil.errors import AuthenticityError, ProtocolError
from medveil.federation.snapshot import Snapshot, load_snapshot, save_snapshot
from medveil.secagg.ring import RingVector


class Outbox:
    """Holds the contribution to one round at a time.

    Args:
        folder: of the site; made where there is none. Whoever reads it sees the site's contribution unmasked.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._vector = folder / "contribution.safetensors"
        self._opened = _Members(folder / "included.json")
        self._scored = _Members(folder / "scored.json")
        self._of: tuple[int, str] | None = None

    def contribution(self, round_number: int, start: str, compute: Callable[[], RingVector]) -> RingVector:
        """What was written down for this round and these weights; else what ``compute`` gives, once it is on disk.

        Args:
            round_number: counted from 1.
            start: :func:`fingerprint` of the weights that the contribution starts from.
            compute: makes a new contribution.

        Raises:
            AuthenticityError: the round is past: what was given to it could be opened over other sites.
        """
        kept = self._kept(round_number)
        self._of = (round_number, start)
        if kept is not None and kept.round == round_number and kept.facts["start"] == start:
            return self._ring(kept)
        made = compute()
        latest = max(round_number, 0 if kept is None else kept.facts["latest"])
        save_snapshot(Snapshot(round_number, {"vector": made}, {"start": start, "latest": latest}), self._vector)
        _sync(self._vector.parent)
        return made

    def has(self, round_number: int, start: str) -> bool:
        """Whether this round's contribution was written down before.

        Raises:
            AuthenticityError: the round is past, as for :meth:`contribution`.
        """
        kept = self._kept(round_number)
        return kept is not None and kept.round == round_number and kept.facts["start"] == start

    def unsent(self, round_number: int) -> bool:
        """Whether it is sure that no contribution to this round, from whatever weights, was ever written down."""
        kept = load_snapshot(self._vector)
        return kept is None or kept.facts["latest"] < round_number

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
            AuthenticityError: they were opened, or nearly, over other sites before.
        """
        self._scored.note((round_number, start), members)

    def _kept(self, round_number: int) -> Snapshot | None:
        kept = load_snapshot(self._vector)
        if kept is not None and round_number < kept.facts["latest"]:
            raise _past(round_number, kept.facts["latest"])
        return kept

    @staticmethod
    def _ring(kept: Snapshot) -> RingVector:
        return cast("RingVector", kept.tensors["vector"])


class _Members:
    """A file that says over which sites the latest of something was opened.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def note(self, of: tuple[int, str], members: Sequence[str]) -> None:
        """Write down the sites, durably; what was noted for another round or other weights does not count.

        Raises:
            AuthenticityError: other sites were written down for the same, or a later round.
        """
        names, earlier = sorted(members), self._noted(of)
        if earlier is not None:
            if earlier != names:
                raise AuthenticityError(
                    "The same contribution is to be opened a second time over other sites",
                    got=", ".join(names),
                    expected=", ".join(earlier),
                    remedy="go on with the sites that took part before the interruption, or start a new run",
                )
            return
        temporary = self._path.with_name(self._path.name + ".tmp")
        with temporary.open("w", encoding="utf-8") as written:
            json.dump({"of": list(of), "sites": names}, written)
            written.flush()
            os.fsync(written.fileno())
        temporary.replace(self._path)
        _sync(self._path.parent)

    def _noted(self, of: tuple[int, str]) -> list[str] | None:
        if not self._path.exists():
            return None
        noted = json.loads(self._path.read_text(encoding="utf-8"))
        if of[0] < noted["of"][0]:
            raise _past(of[0], noted["of"][0])
        return list(noted["sites"]) if noted["of"] == list(of) else None


def _past(asked: int, latest: int) -> AuthenticityError:
    return AuthenticityError(
        "The server asks for a round that is past",
        got=f"round {asked}",
        expected=f"round {latest} or a later one",
        remedy="start a new run; a coordinator that lost its checkpoints cannot go on with this one",
    )


def _sync(folder: Path) -> None:
    """Make renames in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
