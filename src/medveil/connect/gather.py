"""The coordinator waits for one message of one kind from every site."""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from medveil.errors import ProtocolError, TooFewSitesError
from medveil.federation.coordinator import Outgoing
from medveil.federation.messages import Message, Sealed, decode, kind_of

_LARGEST_BODY = 1 << 16
MessageT = TypeVar("MessageT", bound=Message)


class Gather(Generic[MessageT]):
    """A :class:`medveil.federation.remote.Machine` that asks nothing.

    Args:
        kind: of the messages.
        sites: whom they come from.
        least: sites without which it cannot end.
        check: raises what refuses a message.
    """

    def __init__(
        self,
        kind: type[MessageT],
        sites: Sequence[str],
        *,
        least: int,
        check: Callable[[str, MessageT], None] = lambda _site, _message: None,
    ) -> None:
        self.gathered: dict[str, MessageT] = {}
        self.lost: dict[str, str] = {}
        self._kind, self._alive, self._least, self._check = kind, sorted(sites), least, check

    @property
    def done(self) -> bool:
        """Whether every site that is there has told."""
        return not self.awaited

    @property
    def awaited(self) -> tuple[str, ...]:
        """Sites that have yet to tell."""
        return tuple(site for site in self._alive if site not in self.gathered)

    def receive(self, site: str, data: bytes) -> list[Outgoing]:
        """Take a site's message.

        Raises:
            MessageError: not a valid message.
            ProtocolError: another kind, or a second one.
        """
        if kind_of(data) == Sealed.kind:  # what a secure sum that is over had still under way
            return []
        message, _ = decode(data, max_body=_LARGEST_BODY)
        if not isinstance(message, self._kind) or site not in self._alive or site in self.gathered:
            raise ProtocolError(
                "A site sent a message at the wrong moment",
                got=type(message).__name__,
                expected=self._kind.__name__,
            )
        self._check(site, message)
        self.gathered[site] = message
        return []

    def lose(self, site: str, reason: str) -> list[Outgoing]:
        """Go on without ``site``.

        Raises:
            TooFewSitesError: too few are left.
        """
        if site in self._alive:
            self._alive.remove(site)
            self.gathered.pop(site, None)
            self.lost[site] = reason
        if len(self._alive) < self._least:
            raise TooFewSitesError(
                "Too few sites are there",
                got=f"{len(self._alive)}; " + "; ".join(f"{name}: {why}" for name, why in sorted(self.lost.items())),
                expected=f"at least {self._least}",
                remedy="mend the cause at the site",
            )
        return []

    def can_spare(self, site: str) -> bool:
        """Whether it could end without ``site``."""
        return len(self._alive) - (site in self._alive) >= self._least
