"""A coordinator that leads sites elsewhere: the transport over any engine that offers a channel."""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from medveil.errors import InterruptedRunError, MessageError, ProtocolError
from medveil.federation.coordinator import Coordinator, Outgoing
from medveil.federation.messages import LONGEST_TEXT, Decline, Farewell, Notice, decode, encode, kind_of
from medveil.federation.patience import Patience
from medveil.federation.postman import Arrival, Postman
from medveil.federation.transport import Traffic

_POLL_S = 0.1
_SMALL = 1 << 16
_HEARD_AGAIN_S = 5.0
_SURELY_GONE_S = 5.0


class Machine(Protocol):
    """Whatever waits for sites: a :class:`Coordinator`, or a sum of one vector a site."""

    @property
    def done(self) -> bool:
        """Whether it waits no more."""
        ...

    @property
    def awaited(self) -> Sequence[str]:
        """Sites that have yet to answer."""
        ...

    def receive(self, site: str, data: bytes) -> list[Outgoing]:
        """React to a site's message."""
        ...

    def lose(self, site: str, reason: str) -> list[Outgoing]:
        """Go on without a site."""
        ...

    def can_spare(self, site: str) -> bool:
        """Whether it can go on without the site."""
        ...


@dataclass(frozen=True)
class Happening:
    """Something that the record and whoever watches should know.

    Args:
        what: one word: "silent", "back", "lost", "declined", "notice".
        site: whom it is about.
        text: in words.
    """

    what: str
    site: str
    text: str


class Remote:
    """Delivers messages between the coordinator and sites elsewhere, and tells who is gone.

    Args:
        name: of the engine, for the record.
        postman: with a link to every site.
        sites: that take part.
        patience: how long to wait.
        watch: told what happens.
        stopped: whether the run was ended from outside.
        gone: sites whose process the engine knows, or believes, to be dead: once they are silent too, they are.
        traffic: bytes of earlier parts of the run, to count on from.
    """

    def __init__(
        self,
        name: str,
        postman: Postman,
        sites: Sequence[str],
        *,
        patience: Patience | None = None,
        watch: Callable[[Happening], None] = lambda _happening: None,
        stopped: Callable[[], bool] = lambda: False,
        gone: Callable[[], Collection[str]] = tuple,
        traffic: Traffic | None = None,
    ) -> None:
        self.name = name
        self._postman = postman
        self.sites = tuple(sites)
        self._patience = patience or Patience()
        self._watch, self._stopped, self._gone = watch, stopped, gone
        self._earlier = traffic or Traffic({}, {})
        self._silent: set[str] = set()
        self._left: set[str] = set()
        self._waiting_since: dict[str, float] = {}
        self._final: dict[str, bool] = {}

    def run(self, coordinator: Coordinator) -> None:
        """Deliver messages until the coordinator is done.

        Raises:
            MedveilError: the coordinator cannot go on.
            InterruptedRunError: the run was ended from outside.
        """
        self.lead(coordinator)

    def lead(self, machine: Machine, outgoing: Iterable[Outgoing] = ()) -> None:
        """The same for any machine, which may begin with messages of its own.

        Raises:
            MedveilError: the machine cannot go on.
            InterruptedRunError: the run was ended from outside.
        """
        self._waiting_since.clear()
        self._send(outgoing)
        while not machine.done:
            if self._stopped():
                raise InterruptedRunError("The run was ended from outside", remedy="submit the same plan to go on")
            arrival = self._postman.next(_POLL_S)
            if arrival is not None:
                self._send(self._take(machine, arrival))
            self._send(self._missing(machine))

    def tell(self, data: bytes, sites: Iterable[str]) -> None:
        """Send the same message to several sites."""
        self._send(Outgoing(site, data) for site in sites)

    def dismiss(self, site: str, reason: str) -> None:
        """Go on without a site for good, between machines.

        Args:
            site: that does not fit.
            reason: in words, for the record and for whoever watches.
        """
        self._left.add(site)
        self._final[site] = True
        self._watch(Happening("lost", site, reason))
        self._postman.send(site, encode(Farewell(reason=reason[:LONGEST_TEXT])))

    def traffic(self) -> Traffic:
        """Bytes carried so far, earlier parts of the run included."""
        carried = {site: self._postman.bytes_carried(site) for site in self.sites}
        sent = Counter(self._earlier.sent) + Counter({site: back for site, (_, back) in carried.items()})
        received = Counter(self._earlier.received) + Counter({site: out for site, (out, _) in carried.items()})
        return Traffic(_all(sent, self.sites), _all(received, self.sites))

    def _send(self, outgoing: Iterable[Outgoing]) -> None:
        for message in outgoing:
            if message.site not in self._left:
                self._postman.send(message.site, message.data)

    def _take(self, machine: Machine, arrival: Arrival) -> list[Outgoing]:
        """Give a message to the machine; what a site does wrong is that site's loss alone."""
        site, data = arrival.peer, arrival.data
        self._waiting_since.pop(site, None)
        if site in self._left or site not in self.sites:
            return []
        try:
            if kind_of(data) in (Notice.kind, Decline.kind):
                return self._word(machine, site, data)
            return machine.receive(site, data)
        except (MessageError, ProtocolError) as error:
            words = error.what if error.remedy is None else f"{error.what}: {error.remedy}"
            return self._lose(machine, site, words, final=True)

    def _word(self, machine: Machine, site: str, data: bytes) -> list[Outgoing]:
        message, _ = decode(data, max_body=_SMALL)
        if isinstance(message, Decline):
            self._watch(Happening("declined", site, message.reason))
            return self._lose(machine, site, message.reason, final=message.final)
        assert isinstance(message, Notice)
        self._watch(Happening("notice", site, message.text))
        return []

    def _missing(self, machine: Machine) -> list[Outgoing]:
        """Lose whom the engine knows to be dead, who has been silent for too long, or does not answer."""
        outgoing: list[Outgoing] = []
        now, gone, awaited = time.monotonic(), set(self._gone()), set(machine.awaited)
        for site in [site for site in self.sites if site not in self._left]:
            if machine.done:
                break
            if (length := self._postman.too_long(site)) is not None:
                outgoing += self._lose(machine, site, _too_long(length), final=True)
                continue
            silent = self._postman.silent_s(site)
            reason = self._verdict(site, silent, spare=machine.can_spare(site), gone=site in gone)
            if reason is None and site in awaited:
                since = self._waiting_since.setdefault(site, now)
                if now - since > self._patience.answer_s:
                    reason = f"The site did not answer for {self._patience.answer_s:g} s"
            if reason is not None:
                outgoing += self._lose(machine, site, reason, final=False)
        return outgoing

    def _verdict(self, site: str, silent: float, *, spare: bool, gone: bool) -> str | None:
        """Why a site is taken for dead; None while it is not."""
        if gone and silent > _SURELY_GONE_S:
            return "The site's process ended"
        if silent <= self._patience.dead_after_s:
            if site in self._silent:
                self._silent.discard(site)
                self._watch(Happening("back", site, "The site is heard of again"))
            return None
        if site not in self._silent:
            self._silent.add(site)
            waiting = "" if spare else f"; the plan needs it: waiting for up to {self._patience.hold_s:g} s"
            self._watch(Happening("silent", site, f"Nothing was heard of the site for {silent:.0f} s{waiting}"))
        if spare or silent > self._patience.hold_s:
            return f"Nothing was heard of the site for {silent:.0f} s"
        return None

    def _lose(self, machine: Machine, site: str, reason: str, *, final: bool) -> list[Outgoing]:
        self._left.add(site)
        self._final[site] = final
        self._watch(Happening("lost", site, reason))
        farewell = f"The run goes on without this site: {reason}"
        self._postman.send(site, encode(Farewell(reason=farewell[:LONGEST_TEXT])))
        return machine.lose(site, reason)

    @property
    def left(self) -> Mapping[str, bool]:
        """Sites that are not there any more, and whether that is final."""
        return dict(self._final)

    @property
    def returned(self) -> tuple[str, ...]:
        """Sites that were lost, not for good, and are heard of again."""
        lost = [site for site, final in self._final.items() if not final]
        return tuple(site for site in lost if self._postman.silent_s(site) < _HEARD_AGAIN_S)


def _too_long(length: int) -> str:
    return (
        f"The site's message of {length / 2**20:.0f} MiB is longer than the server takes: "
        "raise max_message_mb in the server's server.json"
    )


def _all(counted: Counter[str], sites: Iterable[str]) -> dict[str, int]:
    return {site: counted[site] for site in sorted({*sites, *counted})}
