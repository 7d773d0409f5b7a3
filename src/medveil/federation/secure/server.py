"""The coordinator's side of the secure sum: one session a group of sites, and what the opened sums mean."""

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from medveil.errors import ProtocolError
from medveil.federation.secure.blocks import Blocks
from medveil.federation.secure.decided import Decided, check_there
from medveil.federation.secure.origin import Purpose, sum_context
from medveil.federation.secure.packing import Packing, ScorePacking, Unpacked
from medveil.federation.secure.settings import SecureAggregation
from medveil.federation.update import Update
from medveil.secagg.opening import Opened
from medveil.secagg.parameters import Parameters
from medveil.secagg.server import Outgoing as SealedFor
from medveil.secagg.server import ServerSession


@dataclass(frozen=True)
class Group:
    """Sites whose vectors are summed.

    Args:
        parameters: of their sessions.
        packing: of their updates.
        blocks: of the model that rounds sum.
    """

    parameters: Parameters
    packing: Packing
    blocks: Blocks


@dataclass
class Counts:
    """What happened so far, restarts included.

    Args:
        sums_opened: of all groups, validation included.
        clipped: coordinates out of range, or None where nobody may tell.
        refused_groups: group sums beyond the norm bound.
        dropped: in how many opened sums a site was missing.
        server_seconds: that the protocol took at the server.
    """

    sums_opened: int = 0
    clipped: int | None = None
    refused_groups: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    server_seconds: float = 0.0


class SecureServer:
    """Opens one sum a group and step, and combines the groups.

    Args:
        groups: every site is in exactly one.
        scores: packing of validation scores, for the largest group.
        settings: how groups are combined.
        decided: where it is written down over whom a sum is opened, before the sites are told.

    Raises:
        ProtocolError: a frame from a site that is in no group.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        scores: ScorePacking,
        settings: SecureAggregation,
        decided: Decided | None = None,
    ) -> None:
        self._groups = tuple(groups)
        self._sessions = [ServerSession(group.parameters) for group in groups]
        self._of = {name: at for at, group in enumerate(groups) for name in group.parameters.names}
        self._scores, self._settings = scores, settings
        self._decided = Decided() if decided is None else decided
        self._opened: list[Opened | None] = [None] * len(groups)
        self._step = 0
        self._of_step: tuple[Purpose, int] = ("round", 0)
        self.counts = Counts()

    @property
    def least(self) -> int:
        """Sites that must stay: enough in every group."""
        return sum(group.parameters.min_included for group in self._groups)

    @property
    def prepared(self) -> bool:
        """Whether every group can begin a step."""
        return all(session.phase == "ready" for session in self._sessions)

    @property
    def opened(self) -> bool:
        """Whether every group's sum of the step that was begun is there."""
        return all(opened is not None for opened in self._opened)

    @property
    def awaited(self) -> frozenset[str]:
        """Sites that some group's session waits for."""
        return frozenset(name for session in self._sessions for name in session.awaited)

    def receive(self, site: str, frames: Sequence[bytes]) -> list[SealedFor]:
        """React to a site's frames.

        Raises:
            MessageError: not valid frames.
            ProtocolError: the site breaks the protocol.
            TooFewSitesError: too few sites are left in its group; nothing is opened.
        """
        session = self._sessions[self._group(site)]
        return self._go_on(lambda: [out for frame in frames for out in session.receive(site, frame)])

    def lose(self, site: str) -> list[SealedFor]:
        """Go on without ``site``.

        Raises:
            TooFewSitesError: as in :meth:`receive`.
        """
        session = self._sessions[self._group(site)]
        return self._go_on(lambda: session.lose(site))

    def can_spare(self, site: str) -> bool:
        """Whether its group could open sums without ``site``."""
        promised = self._decided.of(*self._of_step).get(site, False)
        session = self._sessions[self._group(site)]
        return session.can_spare(site) and not (promised and session.phase == "collecting")

    def left_out(self, purpose: Purpose, round_number: int, alive: Collection[str]) -> list[str]:
        """Sites that are there and must not be in a sum, since it was to be opened without them before.

        Raises:
            TooFewSitesError: a site that must be in it is not there.
        """
        decided = self._decided.of(purpose, round_number)
        check_there(decided, alive)
        return [site for site in alive if not decided.get(site, True)]

    def begin(self, purpose: Purpose, round_number: int, start: str) -> dict[str, list[bytes]]:
        """Frames that begin a step, by site.

        Args:
            purpose: what is summed.
            round_number: that it is of, counted from 1.
            start: :func:`~medveil.federation.secure.origin.fingerprint` of the weights that sites work from; a vector
                that was made from other weights is refused.

        Raises:
            TooFewSitesError: as in :meth:`receive`.
        """
        self._opened = [None] * len(self._sessions)
        self._step += 1
        self._of_step = (purpose, round_number)
        context = sum_context(purpose, round_number, start)
        forms = [self._form(group, purpose, round_number) for group in self._groups]
        pairs = list(zip(self._sessions, forms, strict=True))
        return by_site(self._go_on(lambda: [out for session, form in pairs for out in session.begin(*form, context)]))

    def _form(self, group: Group, purpose: Purpose, round_number: int) -> tuple[int, int]:
        """Bits and length of the vectors that a step sums."""
        if purpose == "scores":
            return self._scores.bits, self._scores.length
        rest = group.packing.length - group.blocks.dimension
        return group.packing.bits, rest + group.blocks.length(round_number)

    def update(self, round_number: int) -> tuple[Update, float | None]:
        """The groups' opened updates, combined, and the mean training loss where all told it.

        Args:
            round_number: that the updates are of, counted from 1.

        Raises:
            ProtocolError: every group's change is beyond the norm that the plan allows.
        """
        sums: list[Unpacked] = []
        for group, opened in zip(self._groups, self._opened, strict=True):
            assert opened is not None
            total = group.blocks.restore(opened.total, round_number)
            sums.append(group.packing.unpack(total, len(opened.included)))
        clipped = [one.clipped for one in sums if one.clipped is not None]
        if clipped:
            self.counts.clipped = (self.counts.clipped or 0) + sum(clipped)
        accepted = [one for one in sums if self._within(one.update)]
        self.counts.refused_groups += len(sums) - len(accepted)
        if not accepted:
            raise ProtocolError(
                "Every group's change is larger than the plan allows",
                expected=f"an L2 norm of at most {self._settings.l2_norm}",
                remedy="raise privacy.secure_aggregation.l2_norm, or lower training.optimiser.lr",
            )
        return self._combined([one.update for one in accepted]), _mean_loss(accepted)

    def scores(self) -> dict[str, float | None]:
        """The opened validation scores, over all groups."""
        totals: dict[str, tuple[float, float]] = {}
        for opened in self._opened:
            assert opened is not None
            for name, (weight, value) in self._scores.unpack(opened.total, len(opened.included)).items():
                before = totals.get(name, (0.0, 0.0))
                totals[name] = (before[0] + weight, before[1] + value)
        return {name: value / weight for name, (weight, value) in sorted(totals.items()) if weight > 0}

    def describe(self) -> dict[str, Any]:
        """What the record says about the secure sums."""
        return {
            "groups": [list(group.parameters.names) for group in self._groups],
            "thresholds": [group.parameters.threshold for group in self._groups],
            "min_included": [group.parameters.min_included for group in self._groups],
            "colluding": self._settings.colluding,
            "combine": self._settings.combine,
            "blocks": self._settings.blocks,
            **self._groups[0].packing.describe(),
            **asdict(self.counts),
        }

    def _group(self, site: str) -> int:
        if site not in self._of:
            raise ProtocolError("A message came from a site that does not take part", expected="a site of the plan")
        return self._of[site]

    def _go_on(self, act: Callable[[], list[SealedFor]]) -> list[SealedFor]:
        begun = time.perf_counter()
        outgoing = act()
        for session in self._sessions:
            if session.included is not None:
                names = session.parameters.names
                self._decided.note(*self._of_step, {name: name in session.included for name in names})
        for at, session in enumerate(self._sessions):
            opened = session.opened
            if self._opened[at] is None and session.phase == "ready" and opened and opened.step == self._step:
                self._opened[at] = opened
                self.counts.sums_opened += 1
                for name in opened.dropped:
                    self.counts.dropped[name] = self.counts.dropped.get(name, 0) + 1
        self.counts.server_seconds += time.perf_counter() - begun
        return outgoing

    def _within(self, update: Update) -> bool:
        limit = self._settings.l2_norm
        return limit is None or float(np.linalg.norm(update.mean())) <= limit

    def _combined(self, updates: Sequence[Update]) -> Update:
        if self._settings.combine == "mean" or len(updates) == 1:
            total = updates[0]
            for update in updates[1:]:
                total += update
            return total
        weight = math.fsum(update.weight for update in updates)
        middle = np.median(np.stack([update.mean() for update in updates]), axis=0)
        buffers = np.median(np.stack([update.mean_buffers() for update in updates]), axis=0)
        return Update(middle * weight, weight, np.asarray(buffers * weight, dtype=np.float64))


def _mean_loss(sums: Sequence[Unpacked]) -> float | None:
    parts = [(one.update.weight, one.loss) for one in sums]
    if any(loss is None for _, loss in parts):
        return None
    return sum(weight * (loss or 0.0) for weight, loss in parts) / sum(weight for weight, _ in parts)


def by_site(outgoing: Sequence[SealedFor]) -> dict[str, list[bytes]]:
    """Frames of one site together, in order."""
    frames: dict[str, list[bytes]] = {}
    for out in outgoing:
        frames.setdefault(out.site, []).append(out.data)
    return frames
