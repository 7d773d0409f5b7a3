"""The server's side of one step: masked vectors as they come in, and their running sum."""

import hashlib
from dataclasses import dataclass, field

import numpy as np

from medveil.errors import AuthenticityError, MessageError, ProtocolError
from medveil.secagg.identity import verify
from medveil.secagg.messages import Chunk, Upload
from medveil.secagg.parameters import Parameters
from medveil.secagg.records import Agreement, Entry, Kind, Receipt
from medveil.secagg.ring import RingVector, word


@dataclass(slots=True, repr=False)
class _Incoming:
    """A vector of which not all chunks have come."""

    receipt: Receipt
    chunks: list[bytes | memoryview] = field(default_factory=list)
    received: int = 0


class Collection:
    """All that the server knows of one step.

    Args:
        parameters: as everywhere.
        session: 32 bytes.
        step: its number.
        entries: of the sites in it.
        view: their hash.
        form: (bits, length) that vectors must have; None: that of the first.
        context: what they must be computed from, 32 bytes; None: what the first was.
    """

    def __init__(
        self,
        parameters: Parameters,
        session: bytes,
        step: int,
        entries: dict[int, Entry],
        view: bytes,
        form: tuple[int, int] | None,
        context: bytes | None,
    ) -> None:
        self.step = step
        self.entries = entries
        self.view = view
        self._total: RingVector | None = None
        self.receipts: dict[int, Receipt] = {}
        self.agreements: dict[int, Agreement] = {}
        self.shares: dict[Kind, dict[int, dict[int, bytes]]] = {Kind.SEED: {}, Kind.MASK_KEY: {}}
        self.revealed: set[int] = set()
        self._parameters = parameters
        self._session = session
        self._form = form
        self._context = context
        self._incoming: dict[int, _Incoming] = {}

    @property
    def included(self) -> tuple[Receipt, ...]:
        """Receipts of the sites whose vectors are complete, by index."""
        return tuple(self.receipts[index] for index in sorted(self.receipts))

    @property
    def total(self) -> RingVector:
        """The sum of the complete masked vectors.

        Raises:
            ProtocolError: there is none.
        """
        if self._total is None:
            raise ProtocolError("There is no vector in this sum")
        return self._total

    @property
    def dropped(self) -> list[int]:
        """The sites of the step whose vectors are not."""
        return sorted(self.entries.keys() - self.receipts.keys())

    def open(self, index: int, upload: Upload) -> None:
        """A header: from now on chunks are expected.

        Raises:
            ProtocolError: it is not this site's turn, or the vector does not fit the others, in form or context.
            AuthenticityError: another site's header, or a signature that fails.
        """
        receipt = upload.receipt
        if index not in self.entries or index in self._incoming or index in self.receipts:
            raise ProtocolError("No vector is expected of this site", got=f"site {index}", expected="one for each step")
        if receipt.index != index or not verify(
            self._parameters.key(index), receipt.signature, receipt.text(self._session)
        ):
            raise AuthenticityError(
                "A header was not signed by the site that sent it",
                got=f"site {index}",
                expected="its signature over this session, step and view",
                remedy="leave that site out of this step",
            )
        if receipt.view != self.view or receipt.step != self.step:
            raise ProtocolError(
                "A vector belongs to another step or view", got=f"step {receipt.step}", expected=f"step {self.step}"
            )
        form = (receipt.bits, receipt.length)
        if receipt.bits not in {32, 64} or receipt.length == 0 or (self._form is not None and form != self._form):
            raise ProtocolError(
                "A vector does not fit the sum",
                got=f"{receipt.length} words of {receipt.bits} bits",
                expected="at least one word of 32 or 64 bits"
                if self._form is None
                else f"{self._form[1]} words of {self._form[0]} bits",
            )
        if self._context not in {None, receipt.context}:
            raise ProtocolError(
                "A vector was computed from something else than the others",
                got=f"site {index}, context {receipt.context.hex()[:12]}",
                expected=f"context {(self._context or b'').hex()[:12]}",
                remedy="send all sites the same; if they were sent the same, leave that site out",
            )
        self._form, self._context = form, receipt.context
        self._incoming[index] = _Incoming(receipt)

    def add(self, index: int, chunk: Chunk) -> None:
        """A chunk; with the last one, the whole is added to the sum.

        Raises:
            ProtocolError: a chunk that does not continue this site's vector of this step.
            MessageError: a chunk of another size than agreed.
            AuthenticityError: the whole is not what the site signed; it is thrown away.
        """
        incoming = self._incoming.get(index)
        if incoming is None or chunk.index != index or chunk.step != self.step or chunk.offset != incoming.received:
            raise ProtocolError(
                "A chunk does not continue a vector",
                got=f"site {index}, step {chunk.step}, byte {chunk.offset}",
                expected="the header first, then each byte once, in order",
            )
        whole = incoming.receipt.length * incoming.receipt.bits // 8
        size = min(self._parameters.chunk_bytes, whole - incoming.received)
        if len(chunk.data) != size:
            raise MessageError("A chunk has the wrong size", got=f"{len(chunk.data)} bytes", expected=f"{size} bytes")
        incoming.chunks.append(chunk.data)
        incoming.received += size
        if incoming.received == whole:
            del self._incoming[index]
            self._check_digest(incoming)
            self._sum(incoming)
            self.receipts[index] = incoming.receipt

    def _check_digest(self, incoming: _Incoming) -> None:
        whole = hashlib.sha256()
        for data in incoming.chunks:
            whole.update(data)
        if whole.digest() != incoming.receipt.digest:
            raise AuthenticityError(
                "A masked vector is not the one that its site signed",
                got=f"site {incoming.receipt.index}, another SHA-256",
                expected="the digest in its header",
                remedy="leave that site out of this step",
            )

    def _sum(self, incoming: _Incoming) -> None:
        kind = np.dtype(word(incoming.receipt.bits))
        if self._total is None:
            self._total = np.zeros(incoming.receipt.length, kind)
        start = 0
        for data in incoming.chunks:
            words = np.frombuffer(data, kind.newbyteorder("<"))
            part = self._total[start : start + words.size]
            np.add(part, words, out=part)
            start += words.size

    def close(self) -> None:
        """No more vectors: those that are not complete are thrown away."""
        self._incoming.clear()

    def forget(self, index: int) -> None:
        """Throw away what came of a site's vector, unless it is complete."""
        self._incoming.pop(index, None)
