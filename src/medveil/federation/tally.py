"""One sum of one vector a site, outside the rounds of a training: both ends, message bytes in, message bytes out.

The vectors are words of 64 bits that :mod:`medveil.federation.secure.statistics` and others pack. Under secure
aggregation the coordinator opens their sum alone; otherwise it sees every site's vector.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np

from medveil.errors import MessageError, ProtocolError, TooFewSitesError
from medveil.federation.coordinator import Outgoing
from medveil.federation.messages import Answer, Ask, Purpose, Sealed, Tensors, decode, encode, frames_of, with_frames
from medveil.federation.secure.decided import Decided
from medveil.secagg.identity import IdentityKey
from medveil.secagg.parameters import Parameters
from medveil.secagg.ring import RingVector
from medveil.secagg.server import Outgoing as SealedFor
from medveil.secagg.server import ServerSession
from medveil.secagg.site import SiteSession

_BITS = 64
_ROOM = 1 << 20


class TallyServer:
    """The coordinator's end.

    Args:
        purpose: what is summed.
        sites: that take part.
        absent: sites of the plan that cannot.
        length: words of a vector.
        origin: what the vectors are computed from, as the sites will state it.
        parameters: of the secure sum over ``sites`` and ``absent``; None adds up vectors in the clear.
        least: fewest sites in a sum in the clear.
        decided: where it is written down over whom the sum is opened, before the sites are told.
        number: of the sum there: one more than the rounds before it.
    """

    def __init__(
        self,
        purpose: Purpose,
        sites: Sequence[str],
        absent: Sequence[str] = (),
        *,
        length: int,
        origin: str,
        parameters: Parameters | None = None,
        least: int = 1,
        decided: Decided | None = None,
        number: int = 0,
    ) -> None:
        self._decided, self._number = decided or Decided(), number
        self.purpose = purpose
        self.lost: dict[str, str] = {}
        self.total: RingVector | None = None
        self.included: tuple[str, ...] = ()
        self.vectors: dict[str, RingVector] = {}
        self._alive = sorted(sites)
        self._length, self._least = length, least
        self._origin = hashlib.sha256(origin.encode()).digest()
        self._session = None if parameters is None else ServerSession(parameters)
        self._begun = False
        if self._session is not None:
            for name in absent:
                self._session.lose(name)

    @property
    def done(self) -> bool:
        """Whether the sum is there."""
        return self.total is not None

    @property
    def awaited(self) -> tuple[str, ...]:
        """Sites that have yet to answer."""
        if self._session is not None:
            return tuple(site for site in self._alive if site in self._session.awaited)
        return tuple(site for site in self._alive if site not in self.vectors)

    def ask(self, tensors: Tensors) -> list[Outgoing]:
        """The first messages.

        Args:
            tensors: ``weights`` and ``buffers`` that the sites are to score, or none.
        """
        data = encode(Ask(purpose=self.purpose), tensors)
        return [Outgoing(site, data) for site in self._alive]

    def receive(self, site: str, data: bytes) -> list[Outgoing]:
        """React to a site's message.

        Raises:
            MessageError: not a valid message, or a vector of another length.
            ProtocolError: a message at the wrong moment.
            TooFewSitesError: too few sites are left.
        """
        message, tensors = decode(data, max_body=16 * self._length + _ROOM)
        if site not in self._alive:
            raise ProtocolError("A message came from a site that does not take part", expected="a site of the plan")
        if self._session is not None:
            if not isinstance(message, Sealed):
                raise ProtocolError(
                    "A site answered in the clear where the plan asks for a secure sum", got=type(message).__name__
                )
            session = self._session
            return self._sealed([out for frame in frames_of(tensors) for out in session.receive(site, frame)])
        if not isinstance(message, Answer) or message.purpose != self.purpose or site in self.vectors:
            raise ProtocolError("A site sent a message at the wrong moment", got=type(message).__name__)
        self.vectors[site] = self._checked(tensors)
        return self._add_up()

    def lose(self, site: str, reason: str) -> list[Outgoing]:
        """Go on without ``site``.

        Raises:
            TooFewSitesError: too few are left.
        """
        if self.done or site not in self._alive:
            return []
        self._alive.remove(site)
        self.vectors.pop(site, None)
        self.lost[site] = reason
        if self._session is not None:
            return self._sealed(self._session.lose(site))
        return self._add_up()

    def can_spare(self, site: str) -> bool:
        """Whether the sum can do without ``site``."""
        least = self._least if self._session is None else self._session.parameters.min_included
        promised = self._decided.of(self.purpose, self._number).get(site, False)
        needed = promised and self._session is not None and self._session.included is None
        return len(self._alive) - (site in self._alive) >= least and not needed

    def _add_up(self) -> list[Outgoing]:
        if len(self._alive) < self._least:
            raise TooFewSitesError(
                "Too few sites are left for a sum over all", got=len(self._alive), expected=f"at least {self._least}"
            )
        if not self.awaited:
            self.included = tuple(self._alive)
            total = np.zeros(self._length, dtype=np.uint64)
            for vector in self.vectors.values():
                total += vector  # modulo 2**64
            self.total = total
        return []

    def _sealed(self, outgoing: Sequence[SealedFor]) -> list[Outgoing]:
        assert self._session is not None
        every = list(outgoing)
        if self._session.phase == "ready" and not self._begun:
            self._begun = True
            every += self._session.begin(_BITS, self._length, self._origin)
        if self._session.included is not None:
            names = self._session.parameters.names
            self._decided.note(self.purpose, self._number, {name: name in self._session.included for name in names})
        opened = self._session.opened
        if opened is not None:
            self.total, self.included = opened.total, opened.included
        return [Outgoing(out.site, encode(Sealed(), with_frames([out.data]))) for out in every]

    def _checked(self, tensors: Tensors) -> RingVector:
        vector = tensors.get("vector")
        if vector is None or vector.shape != (self._length,) or vector.dtype != np.uint64:
            raise MessageError(
                "A site's vector does not have the length that was asked for",
                got="none" if vector is None else f"{vector.dtype} {vector.shape}",
                expected=f"uint64 ({self._length},)",
            )
        return cast("RingVector", vector)


class TallySite:
    """A site's end of one sum.

    Args:
        purpose: what is summed.
        vector: the site's own, words of 64 bits.
        origin: what it was computed from.
        name: of the site.
        parameters: of the secure sum; None answers in the clear.
        identity: the site's signing key; needed for a secure sum.
        accept: told, before anything leaves that helps to open the sum, over which sites it goes; should write it down.
    """

    def __init__(
        self,
        purpose: Purpose,
        vector: RingVector,
        *,
        origin: str,
        name: str,
        parameters: Parameters | None = None,
        identity: IdentityKey | None = None,
        accept: Callable[[Sequence[str]], None] = lambda _sites: None,
    ) -> None:
        self._purpose, self._vector = purpose, vector
        self._origin = hashlib.sha256(origin.encode()).digest()
        self._session: SiteSession | None = None
        if parameters is not None:
            assert identity is not None
            self._session = SiteSession(parameters, name, identity, accept=lambda _step, members: accept(members))

    def begin(self) -> list[bytes]:
        """The first messages to the coordinator."""
        if self._session is None:
            return [encode(Answer(purpose=self._purpose), {"vector": self._vector})]
        return [encode(Sealed(), with_frames([self._session.advertise()]))]

    def receive(self, tensors: Tensors) -> list[bytes]:
        """Answer frames of the coordinator's secure sum.

        Raises:
            ProtocolError: there is none, or the coordinator breaks the protocol.
        """
        if self._session is None:
            raise ProtocolError("Frames of a secure sum arrived where the plan asks for none")
        answers: list[bytes] = []
        for frame in frames_of(tensors):
            answers += self._session.receive(frame)
            if self._session.step is not None:
                answers += self._session.submit(self._vector, self._origin)
        return [encode(Sealed(), with_frames([answer])) for answer in answers]
