"""Frames, and a link that is fed them."""

import socket
import threading
from contextlib import suppress

from medveil.encrypted.wire.frames import Kind, write_header
from medveil.encrypted.wire.link import Link

TIMEOUT = 5.0

PARTS = [b"one", b"twotwo" * 5, bytes(range(256))]

WHOLE = b"".join(PARTS)


def frame(payload, sequence=0, kind=Kind.DATA):
    return write_header(kind, sequence, payload, checked=True) + payload


def feed(stream, act, *, timeout_s=TIMEOUT, **limits):
    """What ``act`` makes of a link whose peer sends ``stream`` and ends."""
    mine, peer = socket.socketpair()
    with peer:
        feeder = threading.Thread(target=lambda: suppress_lost(peer, stream))
        feeder.start()
        link = Link(mine, timeout_s=timeout_s, **limits)
        try:
            return act(link)
        finally:
            link.close(discard=True)
            feeder.join()


def suppress_lost(peer, stream):
    with suppress(OSError):
        peer.sendall(stream)
        peer.shutdown(socket.SHUT_WR)
