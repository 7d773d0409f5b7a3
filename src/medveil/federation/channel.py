"""What an engine offers: frames from one party to another, without any promise that they arrive."""

from collections.abc import Callable
from typing import Protocol


class Channel(Protocol):
    """Carries frames between one coordinator and its sites.

    Frames may be lost, repeated, delayed and reordered; :class:`~medveil.federation.link.Link` makes messages of them
    that are not. Who sent a frame is the engine's word: it authenticates its parties.
    """

    def post(self, peer: str, frame: bytes) -> None:
        """Send a frame, at most 1 MiB and 64 bytes long. Never raises: a frame that cannot be sent is lost."""
        ...

    def listen(self, handler: Callable[[str, bytes], None]) -> None:
        """Call ``handler(peer, frame)``, from any thread, for every frame that arrives from now on."""
        ...
