"""A site's side of the secure sum: what it contributes, packed, written down, masked."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

from medveil.errors import ProtocolError
from medveil.federation.secure.blocks import Blocks
from medveil.federation.secure.origin import sum_context
from medveil.federation.secure.outbox import Outbox
from medveil.federation.secure.packing import Packing, ScorePacking
from medveil.federation.update import Contribution
from medveil.secagg.identity import IdentityKey
from medveil.secagg.parameters import Parameters
from medveil.secagg.ring import RingVector
from medveil.secagg.site import SiteSession


class SecureSite:
    """One session of the secure sum at one site, and the site's memory of what it contributed.

    Args:
        parameters: of the site's group.
        name: of the site.
        identity: its long-term signing key.
        outbox: where contributions are written down.
        packing: of contributions.
        blocks: of the model that rounds sum.
        score_packing: of validation scores.
        due: whether a round's weights are validated under the plan; scores of others are refused.
        watch: told how many seconds the protocol takes.
    """

    def __init__(
        self,
        parameters: Parameters,
        name: str,
        identity: IdentityKey,
        outbox: Outbox,
        *,
        packing: Packing,
        blocks: Blocks,
        score_packing: ScorePacking,
        due: Callable[[int], bool] = lambda _round: True,
        watch: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        self._session = SiteSession(parameters, name, identity, accept=self._accept)
        self._outbox = outbox
        self._packing, self._blocks, self._score_packing = packing, blocks, score_packing
        self._due, self._watch = due, watch
        self._write_down: Callable[[Sequence[str]], None] = outbox.accept

    def join(self) -> list[bytes]:
        """Frames that announce the site's keys."""
        with self._timed():
            return [self._session.advertise()]

    def receive(self, frames: Sequence[bytes]) -> list[bytes]:
        """Answer frames of the server.

        Raises:
            ProtocolError: the server breaks the protocol; the site tells nothing.
            MessageError: not valid frames.
        """
        with self._timed():
            return [answer for frame in frames for answer in self._session.receive(frame)]

    def known(self, round_number: int, start: str) -> bool:
        """Whether the contribution to a round was written down before: then nothing is released anew."""
        return self._outbox.has(round_number, start)

    def contribute(self, round_number: int, start: str, compute: Callable[[], Contribution]) -> list[bytes]:
        """Frames with the masked contribution: the one written down before, else a new one, written down first.

        Raises:
            ProtocolError: the server has not begun a step.
        """
        self.check_begun()

        def pack() -> RingVector:
            return self._blocks.cut(self._packing.pack(compute()), round_number)

        vector = self._outbox.contribution(round_number, start, pack)
        return self._masked(vector, sum_context("round", round_number, start), self._outbox.accept)

    def scores(self, round_number: int, start: str, scores: Mapping[str, float | None], examples: int) -> list[bytes]:
        """Frames with the masked validation scores.

        Raises:
            ProtocolError: no step was begun, or the plan does not validate these weights.
        """
        self.check_begun()
        if not self._due(round_number):
            raise ProtocolError(
                "The coordinator asks for scores that the plan does not ask for",
                got=f"round {round_number}",
                expected="a round that federation.validate_every names",
            )
        vector = self._score_packing.pack(scores, examples)
        accept = partial(self._outbox.accept_scores, round_number, start)
        return self._masked(vector, sum_context("scores", round_number, start), accept)

    def check_begun(self) -> None:
        """Refuse to contribute where the server has begun no sum.

        Raises:
            ProtocolError: it has not.
        """
        if self._session.step is None:
            raise ProtocolError("A task arrived without the secure sum that its answer would go into")

    def _masked(self, vector: RingVector, context: bytes, accept: Callable[[Sequence[str]], None]) -> list[bytes]:
        """Masked frames; ``accept`` writes down over whom the vector may be opened."""
        self._write_down = accept
        with self._timed():
            return self._session.submit(vector, context)

    def _accept(self, step: int, members: tuple[str, ...]) -> None:
        del step
        self._write_down(members)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._watch(time.perf_counter() - begun)
