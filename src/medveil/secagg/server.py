"""The server's half of secure aggregation: it relays, adds up, and opens one sum a step."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from medveil.errors import AuthenticityError, MessageError, ProtocolError, TooFewSitesError
from medveil.secagg import server_checks as checks
from medveil.secagg.collecting import Collection
from medveil.secagg.messages import (
    Abort,
    Advertise,
    Agree,
    Agreed,
    Begin,
    Chunk,
    Message,
    Prepare,
    Reveal,
    Roster,
    Survivors,
    Upload,
    decode,
    encode,
)
from medveil.secagg.opening import Opened, open_sum
from medveil.secagg.parameters import Parameters
from medveil.secagg.records import Advertisement, Sealed, check_context, session_id, survivors_hash, view_hash

Phase = Literal["advertising", "preparing", "ready", "collecting", "agreeing", "revealing", "aborted"]


@dataclass(frozen=True, slots=True)
class Outgoing:
    """Bytes for one site."""

    site: str
    data: bytes


class ServerSession:
    """The server in one session: any number of sums, one after the other.

    It goes on by itself when every site that is still there has answered. It keeps no time: :meth:`advance` says that
    a deadline has passed, :meth:`lose` that a site has gone. An error from :meth:`receive` means that the message was
    refused; unless :attr:`phase` is then ``aborted``, the session goes on without it.

    Args:
        parameters: as at all sites.

    Guarantees:
        ``opened.total`` is exactly the sum modulo 2**bits of the vectors that the included sites submitted, as long
        as they keep to the protocol; a share that was tampered with is noticed. Below the threshold nothing opens.
    """

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self.opened: Opened | None = None
        self._phase: Phase = "advertising"
        self._digest = parameters.digest()
        self._there = set(parameters.indices.values())
        self._awaited = set(self._there)
        self._advertisements: dict[int, Advertisement] = {}
        self._session = b""
        self._prepared: dict[int, Prepare] = {}
        self._next = 1
        self._collection: Collection | None = None

    @property
    def phase(self) -> Phase:
        """Where the session stands."""
        return self._phase

    @property
    def awaited(self) -> tuple[str, ...]:
        """Names of the sites whose answer would make this phase end."""
        return tuple(self.parameters.name(index) for index in sorted(self._awaited))

    @property
    def included(self) -> tuple[str, ...] | None:
        """Names of the sites over which the step under way is to be opened; None while that is not decided."""
        if self._phase not in {"agreeing", "revealing"} or self._collection is None:
            return None
        return tuple(self.parameters.name(index) for index in sorted(self._collection.receipts))

    def can_spare(self, site: str) -> bool:
        """Whether enough sites would be there without ``site``."""
        return len(self._there - {self.parameters.indices[site]}) >= self.parameters.min_included

    def receive(self, site: str, data: bytes) -> list[Outgoing]:
        """Take a message from the site of this name.

        Raises:
            MessageError: the bytes are no message of a site.
            ProtocolError: the message does not fit this moment.
            AuthenticityError: its signature fails, it claims to be another site's, or (``phase`` is then ``aborted``)
                the shares do not open the sum.
            TooFewSitesError: it was the last answer, and too few sites are left; ``phase`` is ``aborted``.
        """
        self._alive()
        if site not in self.parameters.indices:
            raise ProtocolError("No such site in this session", got=site, expected="a site of the parameters")
        message = decode(data)
        self._take(self.parameters.indices[site], message)
        return self._go_on()

    def lose(self, site: str) -> list[Outgoing]:
        """A site has gone. What it gave in full counts; a later Prepare for the next step brings it back.

        Raises:
            TooFewSitesError: nobody is awaited now, and too few sites are left.
        """
        self._alive()
        index = self.parameters.indices[site]
        self._there.discard(index)
        self._awaited.discard(index)
        self._prepared.pop(index, None)
        if self._collection is not None:
            self._collection.forget(index)
        return self._go_on()

    def advance(self) -> list[Outgoing]:
        """A deadline has passed: go on with those who answered.

        Raises:
            ProtocolError: the session waits for :meth:`begin`, not for sites.
            TooFewSitesError: too few have.
        """
        self._alive()
        if self._phase == "ready":
            raise ProtocolError("No site is awaited", got="phase ready", expected="begin() first")
        if self._phase in {"advertising", "preparing", "collecting"}:
            self._there -= self._awaited - self._prepared.keys()
        self._awaited.clear()
        return self._go_on()

    def begin(self, bits: int | None = None, length: int | None = None, context: bytes | None = None) -> list[Outgoing]:
        """Begin the next step with every site that is there and has prepared it.

        Args:
            bits: 32 or 64, if only such vectors are wanted; with ``length``.
            length: how many words a vector has. Without both, the first vector decides.
            context: 32 bytes, what the vectors must be computed from. Without it, the first vector decides: then one
                dishonest site can have all others refused.

        Raises:
            ProtocolError: not in phase ``ready``.
            ConfigError: a context of another length.
            TooFewSitesError: too few sites are there.
        """
        self._alive()
        if self._phase != "ready":
            raise ProtocolError("A step cannot begin now", got=f"phase {self._phase}", expected="phase ready")
        if context is not None:
            check_context(context)
        view = sorted(self._prepared.keys() & self._there)
        self._enough(len(view), self.parameters.min_included, "ready for the step")
        prepared = {index: self._prepared[index] for index in view}
        entries = {index: one.entry for index, one in prepared.items()}
        step, hashed = self._next, view_hash(self._session, self._next, entries.values())
        form = None if bits is None or length is None else (bits, length)
        self._collection = Collection(self.parameters, self._session, step, entries, hashed, form, context)
        self._prepared, self._next = {}, step + 1
        self._enter("collecting", view)
        pairs = {index: {sealed.index: sealed.pair for sealed in one.sealed} for index, one in prepared.items()}
        return self._to(
            view,
            lambda index: Begin(
                step,
                tuple(entries.values()),
                tuple(Sealed(sender, pairs[sender][index]) for sender in view if sender != index),
            ),
        )

    def abort(self, reason: str) -> list[Outgoing]:
        """End the session, and tell the sites that are there; also after an error has ended it.

        Args:
            reason: one sentence without anything secret; the sites may log it.
        """
        self._end()
        return self._to(self._there, lambda _: Abort(reason))

    def _take(self, index: int, message: Message) -> None:
        match message:
            case Advertise():
                self._in("advertising")
                checks.check_advertise(message, index, self.parameters, self._digest)
                if index in self._advertisements:
                    raise ProtocolError("A site advertised its key already", got=f"site {index}")
                self._advertisements[index] = message.advertisement
                self._there.add(index)
                self._awaited.discard(index)
            case Prepare():
                self._on_prepare(index, message)
            case Upload():
                self._in("collecting").open(index, message)
            case Chunk():
                self._in("collecting").add(index, message)
                self._uploaded(index)
            case Agree():
                self._on_agree(index, message)
            case Reveal():
                self._on_reveal(index, message)
            case _:
                raise MessageError(
                    "Only the server sends such a message", got=type(message).__name__, expected="a site's message"
                )

    def _on_prepare(self, index: int, message: Prepare) -> None:
        if self._phase == "advertising" or message.step != self._next or index not in self._advertisements:
            raise ProtocolError(
                "A step is prepared at the wrong moment",
                got=f"step {message.step} in phase {self._phase}",
                expected=f"step {self._next}, by a site of the roster",
                remedy="that site has fallen behind: it can join a new session",
            )
        if self._prepared.get(index, message) != message:
            raise ProtocolError("A site prepared this step already", got=f"site {index}", expected="once")
        checks.check_prepare(message, index, self.parameters, self._session, self._advertisements.keys())
        self._prepared[index] = message
        self._there.add(index)
        if self._phase == "preparing":
            self._awaited.discard(index)
        self._uploaded(index)

    def _uploaded(self, index: int) -> None:
        """A site has answered once it prepared the next step too, so that no step begins without it."""
        if self._phase == "collecting" and index in self._in("collecting").receipts and index in self._prepared:
            self._awaited.discard(index)

    def _on_agree(self, index: int, message: Agree) -> None:
        collection = self._in("agreeing")
        checks.check_agree(message, index, self.parameters, self._session, collection, self._survivors_hash(collection))
        collection.agreements[index] = message.agreement
        self._awaited.discard(index)

    def _on_reveal(self, index: int, message: Reveal) -> None:
        collection = self._in("revealing")
        checks.check_reveal(message, index, self.parameters, self._session, collection)
        for share in message.shares:
            collection.shares[share.kind].setdefault(share.index, {})[index] = share.value
        collection.revealed.add(index)
        self._awaited.discard(index)

    def _go_on(self) -> list[Outgoing]:
        """End the phase if nobody is awaited."""
        if self._awaited:
            return []
        try:
            match self._phase:
                case "advertising":
                    return self._send_roster()
                case "preparing":
                    self._enough(len(self._prepared.keys() & self._there), self.parameters.min_included, "prepared")
                    self._enter("ready", ())
                case "collecting":
                    return self._send_survivors()
                case "agreeing":
                    return self._send_agreed()
                case "revealing":
                    self._open()
        except (AuthenticityError, TooFewSitesError):
            self._end()
            raise
        return []

    def _send_roster(self) -> list[Outgoing]:
        self._enough(len(self._advertisements), self.parameters.min_included, "in the session")
        self._advertisements = dict(sorted(self._advertisements.items()))
        advertisements = tuple(self._advertisements.values())
        self._session = session_id(self._digest, advertisements)
        self._there &= self._advertisements.keys()
        self._enter("preparing", self._there)
        return self._to(self._there, lambda _: Roster(advertisements)) or self._go_on()

    def _send_survivors(self) -> list[Outgoing]:
        collection = self._in("collecting")
        collection.close()
        included = collection.included
        self._enough(len(included), self.parameters.min_included, "in the sum")
        receivers = collection.receipts.keys() & self._there
        self._enter("agreeing" if collection.dropped else "revealing", receivers)
        return self._to(receivers, lambda _: Survivors(collection.step, included)) or self._go_on()

    def _send_agreed(self) -> list[Outgoing]:
        collection = self._in("agreeing")
        self._enough(len(collection.agreements), self.parameters.threshold, "that agree")
        agreements = tuple(collection.agreements[index] for index in sorted(collection.agreements))
        receivers = collection.receipts.keys() & self._there
        self._enter("revealing", receivers)
        return self._to(receivers, lambda _: Agreed(collection.step, agreements)) or self._go_on()

    def _open(self) -> None:
        collection = self._in("revealing")
        self._enough(len(collection.revealed), self.parameters.threshold, "that reveal their shares")
        self.opened = open_sum(collection, self.parameters, self._session)
        self._collection = None
        self._enter("ready", ())

    def _survivors_hash(self, collection: Collection) -> bytes:
        return survivors_hash(self._session, collection.step, collection.view, collection.included)

    def _in(self, phase: Phase) -> Collection:
        if self._phase != phase:
            raise ProtocolError(
                "A message came at the wrong moment",
                got=f"phase {self._phase}",
                expected=f"phase {phase}",
                remedy="its site is late: what it sent is not used, and it may prepare the next step",
            )
        return self._collection  # type: ignore[return-value] # there is one in every phase that uses it

    def _enter(self, phase: Phase, awaited: Iterable[int]) -> None:
        self._phase, self._awaited = phase, set(awaited)

    def _to(self, receivers: Iterable[int], message: Callable[[int], Message]) -> list[Outgoing]:
        return [Outgoing(self.parameters.name(index), encode(message(index))) for index in sorted(receivers)]

    def _enough(self, number: int, least: int, where: str) -> None:
        if number < least:
            self._end()
            raise TooFewSitesError(
                f"Too few sites {where}",
                got=number,
                expected=f"at least {least} of {len(self.parameters.sites)}",
                remedy="nothing was opened; start a new session when more sites are there",
            )

    def _alive(self) -> None:
        if self._phase == "aborted":
            raise ProtocolError("This session is over", remedy="start a new session: it has fresh keys")

    def _end(self) -> None:
        self._enter("aborted", ())
        self._collection = None
        self._prepared = {}

    def __repr__(self) -> str:
        return f"<ServerSession phase={self._phase} awaited={self.awaited}>"
