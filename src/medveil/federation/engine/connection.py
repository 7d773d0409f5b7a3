"""One connection of the engine, and the rule that an endpoint has only one."""

import logging
import ssl
import threading
import time
from typing import Any

import msgpack  # type: ignore[import-untyped] # it has no stubs
from nvflare.fuel.f3.comm_error import CommError
from nvflare.fuel.f3.connection import Connection
from nvflare.fuel.f3.drivers.connector_info import ConnectorInfo, Mode
from nvflare.fuel.f3.drivers.driver_params import DriverParams
from nvflare.fuel.f3.sfm.constants import HandshakeKeys, Types
from nvflare.fuel.f3.sfm.prefix import PREFIX_LEN, Prefix

from medveil.federation.engine.listener import in_words
from medveil.federation.engine.tls import TlsSocket

MAX_FRAME_BYTES = 64 * 1024 * 1024
"""No frame of the engine or ours is longer: a peer that announces more is cut off before anything is allocated."""

STALLED_S = 10.0
ALIVE_S = 8.0
"""A connection that was silent for longer is taken over by a new one of the same endpoint; heartbeats are shorter."""

_log = logging.getLogger("medveil.network")


class Endpoints:
    """Which connection each endpoint has: a second process with the same identity is refused.

    An endpoint is a name together with the certificate's common name, so nobody can push out a holder by claiming a
    name that is not theirs; that the two belong together, the engine checks afterwards.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders: dict[tuple[str, str], TlsConnection] = {}

    def claim(self, name: tuple[str, str], connection: "TlsConnection") -> bool:
        """Whether ``connection`` may serve endpoint ``name``; a silent former holder is closed."""
        with self._lock:
            holder = self._holders.get(name)
            if holder is not None and holder is not connection and holder.silent_s < ALIVE_S:
                return False
            self._holders[name] = connection
        if holder is not None and holder is not connection:
            holder.close()
        return True

    def release(self, connection: "TlsConnection") -> None:
        """Forget ``connection``."""
        with self._lock:
            for name in [name for name, holder in self._holders.items() if holder is connection]:
                del self._holders[name]


_ENDPOINTS = Endpoints()


class TlsConnection(Connection):  # type: ignore[misc] # the engine has no types
    """Frames over one TLS socket."""

    def __init__(self, tls: TlsSocket, connector: ConnectorInfo) -> None:
        super().__init__(connector)
        self._tls = tls
        self._greeted = False
        own, peer = tls.addresses
        self._properties = {
            DriverParams.LOCAL_ADDR.value: own,
            DriverParams.PEER_ADDR.value: peer,
            DriverParams.PEER_CN.value: tls.common_name,
        }

    @property
    def silent_s(self) -> float:
        """Seconds since anything arrived."""
        return time.monotonic() - self._tls.last_read

    def get_conn_properties(self) -> dict[str, Any]:
        """Addresses, and the common name of the peer's certificate, to which the engine binds what the peer claims."""
        return self._properties

    def send_frame(self, frame: bytes | bytearray | memoryview) -> None:
        """Send one frame whole.

        Raises:
            CommError: the connection is lost, or stalled and therefore closed.
        """
        try:
            self._tls.send(frame, stalled_s=STALLED_S)
        except TimeoutError:
            self.close()  # part of a frame may have left: the stream cannot go on
            raise CommError(CommError.TIMEOUT, f"{self.name} is stalled") from None
        except OSError:
            self.close()
            raise CommError(CommError.CLOSED, f"{self.name} is closed") from None

    def close(self) -> None:
        """Close at once."""
        self._tls.close()

    def read_until_closed(self) -> None:
        """Hand every frame to the engine, in this thread, until the connection ends."""
        try:
            while True:
                self.process_frame(self._read_frame())
        except ssl.SSLError as error:
            _log.warning("%s ended the connection: %s", self._properties[DriverParams.PEER_CN.value], in_words(error))
        except OSError:
            pass  # ended, by either side
        except CommError as error:
            _log.warning("%s sent what is no frame: closed (%s)", self._properties[DriverParams.PEER_CN.value], error)
        finally:
            _ENDPOINTS.release(self)
            self.close()

    def _read_frame(self) -> bytearray:
        head = bytearray(PREFIX_LEN)
        self._tls.read_into(memoryview(head))
        prefix = Prefix.from_bytes(head)
        if not PREFIX_LEN <= prefix.length <= MAX_FRAME_BYTES or prefix.header_len > prefix.length - PREFIX_LEN:
            raise CommError(CommError.BAD_DATA, f"a frame of {prefix.length} bytes")
        frame = bytearray(prefix.length)
        frame[:PREFIX_LEN] = head
        self._tls.read_into(memoryview(frame)[PREFIX_LEN:])
        if not self._greeted:
            self._greet(prefix, frame)
        return frame

    def _greet(self, prefix: Prefix, frame: bytearray) -> None:
        """The first frame says which endpoint the peer is; the engine checks that against the certificate."""
        self._greeted = True
        if self.connector.mode != Mode.PASSIVE:
            return
        if prefix.type not in {Types.HELLO, Types.READY}:
            raise CommError(CommError.BAD_DATA, "no greeting")
        try:
            name = str(msgpack.unpackb(bytes(frame[PREFIX_LEN + prefix.header_len :]))[HandshakeKeys.ENDPOINT_NAME])
        except (ValueError, KeyError, TypeError, msgpack.UnpackException):
            raise CommError(CommError.BAD_DATA, "a greeting that cannot be read") from None
        if not _ENDPOINTS.claim((name, self._tls.common_name), self):
            _log.error("a second process calls itself %s and was refused: is its kit in use on two machines?", name)
            raise CommError(CommError.BAD_DATA, f"{name} is connected already")
