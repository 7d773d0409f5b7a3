"""The vendor of a model, who serves evaluations."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medveil.encrypted.dealer import owns, seed_file
from medveil.encrypted.program import Program, Weights
from medveil.encrypted.protocol import evaluate
from medveil.encrypted.protocol.deal import masked_weights, prepare_vendor
from medveil.encrypted.serial import program_hash, to_json
from medveil.encrypted.stores.store import Store
from medveil.encrypted.wire.link import Link
from medveil.errors import AuthenticityError, ProtocolError


class Vendor:
    """Serves evaluations of one model.

    Args:
        program: of the model.
        weights: of the model.
        store: folder of correlations from :func:`fetch_as_vendor`.
        description: of the model, public, for the hospital; plain data for JSON.
        journals: as of :class:`~medveil.encrypted.stores.store.Store`.
    """

    def __init__(
        self,
        program: Program,
        weights: Weights,
        store: Path,
        *,
        description: Mapping[str, Any] | None = None,
        journals: Path | None = None,
    ) -> None:
        self._program, self._weights = program, weights
        self._description = dict(description or {})
        self._content = to_json(program)
        self._store = Store(store, party="vendor", program=program_hash(program), journals=journals)
        _bind(seed_file(store).with_suffix(".weights"), weights)
        self._masked = masked_weights(program, weights, seed_file(store).read_bytes())
        self._folder = store

    def serve(self, link: Link) -> int:
        """Answer one hospital until it ends the session.

        Returns:
            Evaluations that were done.

        Raises:
            MessageError: as :class:`~medveil.encrypted.wire.link.Link`.
            ProtocolError: the hospital breaks the protocol, or a correlation was used before.
            AuthenticityError: the store's run is another hospital's.
        """
        if not owns(self._folder, link.peer):
            raise AuthenticityError(
                "The vendor's correlations were dealt for another hospital",
                remedy="have the vendor ask the dealer for a run for this hospital",
            )
        manifest = self._store.manifest
        link.tell(
            {
                "program": manifest.program,
                "program_bytes": len(self._content),
                "run": manifest.run,
                "images": manifest.batch,
                "left": self._store.left,
                "description": self._description,
            }
        )
        done = 0
        while True:
            asked = link.hear(("want", "number"))
            if asked["want"] == "end":
                return done
            if asked["want"] == "model":
                link.send(self._content)
                link.send(self._masked)
                link.flush()
            elif asked["want"] == "evaluation":
                self._evaluate(link, asked["number"])
                done += 1
            else:
                raise ProtocolError("A hospital asks for something that a vendor does not have")

    def _evaluate(self, link: Link, number: object) -> None:
        if not isinstance(number, int):
            raise ProtocolError("A correlation has a number", got=type(number).__name__)
        with self._store.take(number) as correlation:
            half = prepare_vendor(self._program, correlation.seed, correlation.read, self._store.manifest.batch)
        link.tell({"ready": number})
        evaluate.vendor(half, link, self._weights)
        link.flush()


def _bind(path: Path, weights: Weights) -> None:
    """One store masks one model's weights: two models under the same masks would show their difference.

    Raises:
        ProtocolError: the store was used for other weights.
    """
    digest = hashlib.sha256()
    for part in (weights.weights, weights.biases):
        for name, values in sorted(part.items()):
            digest.update(f"{name} {values.shape} ".encode() + np.ascontiguousarray(values).tobytes())
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if path.read_text(encoding="ascii") != digest.hexdigest():
            raise ProtocolError(
                "A store of correlations belongs to other weights",
                expected="the weights that it was first used for",
                remedy="give another --store, and have correlations dealt for this model",
            ) from None
        return
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(digest.hexdigest())
        file.flush()
        os.fsync(file.fileno())
