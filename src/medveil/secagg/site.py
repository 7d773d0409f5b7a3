"""A site's half of secure aggregation: bytes in, bytes out, and nothing leaves that could open more than one sum."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from medveil.errors import ConfigError, MessageError, ProtocolError, TooFewSitesError
from medveil.rng import SecureRandom
from medveil.secagg import site_checks as checks
from medveil.secagg.identity import IdentityKey
from medveil.secagg.keys import KeyPair
from medveil.secagg.masking import hide, mask_key
from medveil.secagg.messages import (
    Abort,
    Advertise,
    Agree,
    Agreed,
    Begin,
    Chunk,
    Message,
    Reveal,
    Roster,
    Survivors,
    Upload,
    decode,
    encode,
)
from medveil.secagg.parameters import Parameters
from medveil.secagg.preparation import Preparation, open_share, prepare
from medveil.secagg.records import (
    NO_CONTEXT,
    Advertisement,
    Agreement,
    Entry,
    Kind,
    Receipt,
    Share,
    check_context,
    session_id,
    survivors_hash,
    view_hash,
)
from medveil.secagg.ring import RingVector

Accept = Callable[[int, tuple[str, ...]], None]


@dataclass(slots=True, repr=False)
class _Step:
    """A step that the server began, with what is secret in it."""

    own: Preparation
    entries: dict[int, Entry]
    view: bytes
    sealed: dict[int, bytes]
    pairs: dict[int, bytes]
    receipt: Receipt | None = None
    survivors: tuple[Receipt, ...] = field(default=())


class SiteSession:
    """One site in one session: any number of sums, one after the other.

    Args:
        parameters: as at all other parties.
        name: this site's name in them.
        identity: the signing key whose public half they name.
        random: where every secret is drawn from; None: the operating system. Never the same stream twice.
        accept: called with the step and the names of the sites in its sum before anything leaves that helps to open
            it. It should write them down durably; what it raises stops the step here.

    Raises:
        ConfigError: the parameters name no such site, or another key for it.

    Guarantees:
        The server, together with up to ``parameters.colluding`` sites, learns of the honest sites' vectors in a step
        no more than the sum over one set of at least ``parameters.min_included`` sites that all state the same context,
        whatever it sends; and nothing at all of a vector that is not in that set. Computational (X25519, HKDF-SHA256,
        AES-256, Ed25519 and ChaCha20-Poly1305 hold). A step's secrets are forgotten when it ends, as far as Python
        forgets.

    Reference:
        Bonawitz et al. 2017, Practical secure aggregation, https://doi.org/10.1145/3133956.3133982; here with fresh
        keys in every step.
    """

    def __init__(
        self,
        parameters: Parameters,
        name: str,
        identity: IdentityKey,
        random: SecureRandom | None = None,
        accept: Accept | None = None,
    ) -> None:
        if parameters.indices.get(name) is None or parameters.key(parameters.indices[name]) != identity.public:
            raise ConfigError(
                "The parameters do not name this site with this key",
                got=name,
                expected="a site of the session, with its own identity key",
                remedy="compare the site's public key with the one that the others were given",
            )
        self.parameters = parameters
        self.name = name
        self.index = parameters.indices[name]
        self._identity = identity
        self._random = random or SecureRandom()
        self._accept = accept
        self._digest = parameters.digest()
        self._run: KeyPair | None = None
        self._advertisement: Advertisement | None = None
        self._session = b""
        self._shared: dict[int, bytes] = {}
        self._prepared: Preparation | None = None
        self._current: _Step | None = None
        self._aborted: str | None = None

    @property
    def step(self) -> int | None:
        """The step that waits for this site's vector; None where none does."""
        current = self._current
        return current.own.step if current is not None and current.receipt is None else None

    @property
    def aborted(self) -> str | None:
        """Why the session ended; None while it goes on."""
        return self._aborted

    def advertise(self) -> bytes:
        """The first message, with this session's key.

        Raises:
            ProtocolError: called before, or the session is over.
        """
        self._alive()
        if self._run is not None:
            raise ProtocolError("This site has advertised its key already", remedy="a new session has a new key")
        self._run = KeyPair.generate(self._random)
        unsigned = Advertisement(self.index, self._run.public)
        self._advertisement = replace(unsigned, signature=self._identity.sign(unsigned.text(self._digest)))
        return encode(Advertise(self._advertisement))

    def receive(self, data: bytes) -> list[bytes]:
        """Answer a message of the server.

        Returns:
            Messages for the server, in order.

        Raises:
            MessageError: the bytes are no message.
            ProtocolError: the message does not fit this moment; nothing has changed.
            AuthenticityError: it was forged, or contradicts what this site knows; nothing has changed.
            TooFewSitesError: it would open a sum over too few sites; the session is over here.
        """
        message = decode(data)
        self._alive()
        try:
            return self._answer(message)
        except TooFewSitesError as error:
            self._end(error.what)
            raise

    def _answer(self, message: Message) -> list[bytes]:
        match message:
            case Roster():
                return self._on_roster(message)
            case Begin():
                return self._on_begin(message)
            case Survivors():
                return self._on_survivors(message)
            case Agreed():
                return self._on_agreed(message)
            case Abort():
                self._end(message.reason)
                return []
            case _:
                raise MessageError(
                    "Only sites send such a message", got=type(message).__name__, expected="a message of the server"
                )

    def _on_roster(self, roster: Roster) -> list[bytes]:
        if self._run is None or self._session:
            raise _unexpected("Roster", "once, after this site advertised its key")
        checks.check_roster(roster, self.parameters, self._digest, self._advertisement)
        run = self._run
        shared = {one.index: run.agree(one.key) for one in roster.advertisements if one.index != self.index}
        self._shared = shared
        self._session = session_id(self._digest, roster.advertisements)
        return [self._prepare(1)]

    def _prepare(self, step: int) -> bytes:
        self._prepared, message = prepare(
            step, self.index, self._session, self._identity, self._shared, self.parameters.threshold, self._random
        )
        return encode(message)

    def _on_begin(self, begin: Begin) -> list[bytes]:
        own = self._prepared
        if own is None or begin.step != own.step:
            raise _unexpected(
                f"Begin of step {begin.step}",
                f"once, for step {own.step}" if own is not None else "after this site has prepared a step",
            )
        roster = {self.index, *self._shared}
        checks.check_begin(begin, self.parameters, self._session, roster, own.entry)
        view = view_hash(self._session, begin.step, begin.entries)
        pairs = {entry.index: own.masks.agree(entry.key) for entry in begin.entries if entry.index != self.index}
        self._current = _Step(
            own,
            {entry.index: entry for entry in begin.entries},
            view,
            {sealed.index: sealed.pair for sealed in begin.sealed},
            pairs,
        )
        self._prepared = None
        return []

    def submit(self, vector: RingVector, context: bytes = NO_CONTEXT) -> list[bytes]:
        """Mask this site's vector for the current step, and prepare the next.

        Args:
            vector: shape (length,), length >= 1, uint32 or uint64; not changed.
            context: 32 bytes that say what the vector was computed from, such as the SHA-256 of all that the server
                sent for it. It is told to the server and the other sites.

        Returns:
            The header, the chunks, and what the site gives for the next step; all for the server, in this order.

        Raises:
            ProtocolError: no step waits for a vector.
            ConfigError: a vector of another kind, or a context of another length.

        Guarantees:
            This site helps to open only a sum whose vectors all state the same context.
        """
        self._alive()
        current = self._current
        if current is None or current.receipt is not None:
            raise _unexpected("A vector", "once, after the server began a step")
        if vector.ndim != 1 or vector.size == 0 or vector.dtype not in {np.dtype(np.uint32), np.dtype(np.uint64)}:
            raise ConfigError(
                "Such a vector cannot be summed",
                got=f"{vector.dtype} {vector.shape}",
                expected="uint32 or uint64, one dimension, not empty",
                remedy="encode with medveil.secagg.encoding first",
            )
        check_context(context)
        step, masked = current.own.step, vector.copy()
        keys = {
            other: mask_key(shared, self._session, step, current.view, context, self.index, other)
            for other, shared in current.pairs.items()
        }
        hide(masked, self.index, current.own.seed, keys)
        current.pairs = {}
        words = masked.astype(masked.dtype.newbyteorder("<"), copy=False).data.cast("B")
        digest = hashlib.sha256(words).digest()
        unsigned = Receipt(self.index, step, current.view, context, 8 * masked.itemsize, masked.size, digest)
        current.receipt = replace(unsigned, signature=self._identity.sign(unsigned.text(self._session)))
        size = self.parameters.chunk_bytes
        chunks = [Chunk(self.index, step, start, words[start : start + size]) for start in range(0, len(words), size)]
        return [encode(Upload(current.receipt)), *map(encode, chunks), self._prepare(step + 1)]

    def _on_survivors(self, survivors: Survivors) -> list[bytes]:
        current = self._current
        if current is None or current.receipt is None or current.survivors or survivors.step != current.own.step:
            raise _unexpected(f"Survivors of step {survivors.step}", "once, after this site's vector of that step")
        checks.check_survivors(survivors, self.parameters, self._session, set(current.entries), current.receipt)
        current.survivors = survivors.receipts
        included = tuple(self.parameters.name(receipt.index) for receipt in survivors.receipts)
        if self._accept is not None:
            try:
                self._accept(survivors.step, included)
            except BaseException:  # whatever it is: this step opens nothing any more
                self._current = None
                raise
        if len(included) == len(current.entries):
            return [self._reveal(current)]
        agreement = Agreement(self.index)
        text = agreement.text(self._session, survivors.step, self._survivors_hash(current))
        return [encode(Agree(survivors.step, replace(agreement, signature=self._identity.sign(text))))]

    def _on_agreed(self, agreed: Agreed) -> list[bytes]:
        current = self._current
        if current is None or not current.survivors or agreed.step != current.own.step:
            raise _unexpected(f"Agreed of step {agreed.step}", "once, after this site agreed to the survivors")
        allowed = {receipt.index for receipt in current.survivors}
        checks.check_agreed(agreed, self.parameters, self._session, allowed, self._survivors_hash(current))
        return [self._reveal(current)]

    def _survivors_hash(self, current: _Step) -> bytes:
        return survivors_hash(self._session, current.own.step, current.view, current.survivors)

    def _reveal(self, current: _Step) -> bytes:
        """One kind of share for each site of the view; the step's secrets are gone before they are sent."""
        self._current = None
        included = {receipt.index for receipt in current.survivors}
        shares = []
        for index, entry in current.entries.items():
            kind = Kind.SEED if index in included else Kind.MASK_KEY
            share = current.own.own_share if index == self.index else self._open(kind, entry, current)
            if share is not None:
                shares.append(Share(index, kind, share))
        message = Reveal(current.own.step, self.index, tuple(shares))
        return encode(replace(message, signature=self._identity.sign(message.text(self._session, current.view))))

    def _open(self, kind: Kind, entry: Entry, current: _Step) -> bytes | None:
        sealed = current.sealed.get(entry.index)
        if sealed is None:
            return None
        shared = self._shared[entry.index]
        return open_share(kind, sealed, entry, shared, self._session, current.own.step, self.index)

    def _alive(self) -> None:
        if self._aborted is not None:
            raise ProtocolError(
                "This session is over", got=self._aborted, remedy="start a new session: it has fresh keys"
            )

    def _end(self, reason: str) -> None:
        self._aborted = reason
        self._run = self._prepared = self._current = None
        self._shared = {}

    def __repr__(self) -> str:
        return f"<SiteSession {self.name!r} index={self.index} step={self.step} aborted={self._aborted is not None}>"


def _unexpected(got: str, expected: str) -> ProtocolError:
    return ProtocolError("A message came at the wrong moment", got=got, expected=expected, remedy="ignore it")
