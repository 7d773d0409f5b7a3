"""The hospital, which brings the image and gets the result."""

import hashlib
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medveil.encrypted.program import Input, Program
from medveil.encrypted.protocol import evaluate
from medveil.encrypted.protocol.deal import prepare_hospital, read_masked_weights
from medveil.encrypted.protocol.ring import SEED_BYTES, Wide
from medveil.encrypted.serial import MAX_BYTES, from_json, program_hash
from medveil.encrypted.stores.store import Store
from medveil.encrypted.wire.control import whole
from medveil.encrypted.wire.link import Link
from medveil.errors import FederationError, ImageError, ProtocolError

_MARK_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Offer:
    """What a vendor offers, told before a hospital sends anything.

    Args:
        program: hash of it.
        run: of the dealer, whose correlations it holds.
        images: that one evaluation takes.
        left: evaluations that the vendor has correlations for.
        description: of the model, as the vendor tells it; not checked here.
    """

    program: str
    run: str
    images: int
    left: int
    description: object


@dataclass(frozen=True)
class Measured:
    """What one evaluation took at the hospital.

    Args:
        seconds_offline: until both parties were ready, before anything of the image was sent.
        seconds_online: from the first byte that depends on the image to the result.
        bytes_sent: meanwhile, headers included.
        bytes_received: likewise.
        messages: frames in both directions, likewise.
    """

    seconds_offline: float
    seconds_online: float
    bytes_sent: int
    bytes_received: int
    messages: int


class Hospital:
    """A session with a vendor.

    Args:
        link: to the vendor.
        kept: file for the program and the masked weights, which are the same for a whole run of the dealer; None
            fetches them in every session. Without the dealer's seed it tells nothing of the weights.
    """

    def __init__(self, link: Link, *, kept: Path | None = None) -> None:
        self._link, self._kept = link, kept
        said = link.hear(("program", "program_bytes", "run", "images", "left", "description"))
        self._size = whole(said["program_bytes"])
        if self._size > MAX_BYTES or not isinstance(said["left"], int):
            raise ProtocolError("A vendor offers a program that is too large", got=self._size, expected=MAX_BYTES)
        self.offer = Offer(
            program=str(said["program"]),
            run=str(said["run"]),
            images=whole(said["images"]),
            left=said["left"],
            description=said["description"],
        )
        self._model: tuple[Program, dict[str, Wide]] | None = None
        self._ended = False

    def program(self) -> Program:
        """Fetch the program and the masked weights, where they are not kept, and check them.

        Raises:
            MessageError: not a program, or not the one that was offered.
        """
        if self._model is None:
            self._model = self._held() or self._fetched()
        return self._model[0]

    def _fetched(self) -> tuple[Program, dict[str, Wide]]:
        self._link.tell({"want": "model", "number": None})
        content = self._link.receive(self._size)
        program = from_json(content)
        if program_hash(program) != self.offer.program:
            raise ProtocolError("A vendor sends another program than it offered", got=program_hash(program))
        masked = self._link.receive(_masked_bytes(program))
        if self._kept is not None:
            temporary = self._kept.with_name(self._kept.name + ".tmp")
            temporary.write_bytes(b"".join([self._mark(content, masked), content, masked]))
            temporary.replace(self._kept)
        return program, read_masked_weights(program, masked)

    def _held(self) -> tuple[Program, dict[str, Wide]] | None:
        """What was kept of this run; nothing where it is another run's, or not whole."""
        if self._kept is None or not self._kept.exists():
            return None
        data = memoryview(self._kept.read_bytes())
        mark, content, masked = data[:_MARK_BYTES], data[_MARK_BYTES:][: self._size], data[_MARK_BYTES + self._size :]
        if bytes(mark) != self._mark(content, masked):
            return None
        program = from_json(content)
        return program, read_masked_weights(program, masked)

    def _mark(self, content: bytes | memoryview, masked: bytes | memoryview) -> bytes:
        """Of which offer this is, and that it is whole."""
        digest = hashlib.sha256(f"{self.offer.run} {self.offer.program} {self._size} ".encode())
        digest.update(content)
        digest.update(masked)
        return digest.digest()

    def diagnose(
        self, images: NDArray[np.int64], store: Path, *, journals: Path | None = None
    ) -> tuple[NDArray[np.float64], Measured]:
        """One evaluation.

        Args:
            images: shape (N, *input shape), N as offered, fixed point at the program's input scale.
            store: from :func:`fetch_as_hospital`, of the offered run.
            journals: as of :class:`~medveil.encrypted.stores.store.Store`.

        Returns:
            What is revealed, shape (N, *output shape); what it took.

        Raises:
            ImageError: of another shape or out of range, before anything is sent; or driven out of range inside: then
                the session has been ended, as after a result, so that the vendor cannot tell.
            ProtocolError: stores that do not fit, or correlations used before.
        """
        program = self.program()
        begun = time.perf_counter()
        check_images(program, images, self.offer.images)
        assert self._model is not None
        held = Store(store, party="hospital", program=self.offer.program, journals=journals)
        if held.manifest.run != self.offer.run or held.manifest.batch != self.offer.images:
            raise ProtocolError(
                "This hospital's correlations are of another run than the vendor's",
                got=held.manifest.run,
                expected=self.offer.run,
                remedy="fetch this run's from the dealer",
            )
        with held.take() as correlation:
            number = correlation.number
            half = prepare_hospital(program, self._model[1], correlation.seed, self.offer.images)
        self._link.tell({"want": "evaluation", "number": number})
        if self._link.hear(("ready",))["ready"] != number:
            raise ProtocolError("A vendor is ready for another correlation than was asked for")
        before = self._counts()
        ready = time.perf_counter()
        try:
            result = evaluate.hospital(half, self._link, images, os.urandom(SEED_BYTES))
        except ImageError:
            with suppress(FederationError):  # a vendor that has gone by now changes nothing
                self.end()
            raise
        ended = time.perf_counter()
        sent, received, frames = (now - then for now, then in zip(self._counts(), before, strict=True))
        return result, Measured(ready - begun, ended - ready, sent, received, frames)

    def end(self) -> None:
        """Say that no more will be asked, and close the link. Twice does nothing.

        Raises:
            FederationError: the vendor has gone.
        """
        if self._ended:
            return
        self._ended = True
        self._link.tell({"want": "end", "number": None})
        self._link.close()

    def _counts(self) -> tuple[int, int, int]:
        link = self._link
        return link.bytes_sent, link.bytes_received, link.frames_sent + link.frames_received


def _masked_bytes(program: Program) -> int:
    return sum(6 * prod(layer.weight_shape) for layer in program.linears())


def check_images(program: Program, images: NDArray[np.int64], count: int) -> None:
    """Refuse what the program was not compiled for, before anything leaves the hospital.

    Raises:
        ImageError: another shape, or values beyond the declared range.
    """
    wanted = (count, *program.input.shape)
    if images.shape != wanted or images.dtype != np.int64:
        raise ImageError("An image has another shape", reason="shape", got=images.shape, expected=wanted)
    given = program.input
    assert isinstance(given, Input)
    low, high = (round(end * 2.0**given.scale) for end in (given.low, given.high))
    if images.size and (images.min() < low or images.max() > high):
        raise ImageError(
            "An image's values lie outside the range that the model was compiled for",
            reason="range",
            expected=f"{given.low:g} to {given.high:g}",
            remedy="preprocess the image as the model's plan says",
        )
