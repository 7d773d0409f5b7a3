"""Which messages a process of the engine hears and passes on: those that a run needs, and no others.

The engine lets every process with a certificate of the federation send anything to every other, and leaves it to the
sender to ask whether it may. Here the receiver decides, by who stands at the other end of the connection.
"""

import logging
import re
import threading
import time
from collections.abc import Mapping
from typing import Any, Literal

from nvflare.fuel.f3.cellnet.core_cell import CoreCell
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, MessageType
from nvflare.fuel.f3.streaming.stream_const import (
    STREAM_ACK_TOPIC,
    STREAM_CHANNEL,
    STREAM_DATA_TOPIC,
    STREAM_ERROR_TOPIC,
    StreamHeaderKey,
)
from nvflare.fuel.utils.admin_name_utils import is_valid_admin_client_name
from nvflare.private.defs import CellChannel

from medveil.federation.engine.channel import CHANNEL, SERVER, TOPIC
from medveil.federation.engine.patched import mark, marked
from medveil.federation.engine.streams import Streams

Role = Literal["server", "server job", "site", "site job", "person"]
JOB_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9_~-]+", re.ASCII)

ANY = "*"
_BYE = {CellChannel.CELLNET: {"bye"}}
_ANSWERS = {CellChannel.RETURN_ONLY: {ANY}}
_DOWNLOADS = "download_service__"
_FILES = {"ObjectStreamer.Request", "ObjectStreamer.Abort"}
_ARRIVAL = {"challenge", "register", "quit"}

HEARD: Mapping[tuple[Role, Role], Mapping[str, set[str]]] = {
    ("server", "site"): _BYE | {CellChannel.SERVER_MAIN: _ARRIVAL | {"heart_beat", "report_job_failure"}},
    ("server", "site job"): _BYE,
    ("server", "person"): _BYE
    | _ANSWERS
    | {
        CellChannel.SERVER_MAIN: _ARRIVAL,
        CellChannel.HCI: {ANY},
        CellChannel.AUX_COMMUNICATION: _FILES,
        _DOWNLOADS: {ANY},
    },
    ("server", "server job"): _BYE | _ANSWERS | {CellChannel.SERVER_PARENT_LISTENER: {ANY}},
    ("server job", "server"): _BYE | _ANSWERS | {CellChannel.SERVER_COMMAND: {ANY}},
    ("server job", "site job"): _BYE
    | _ANSWERS
    | {
        CHANNEL: {TOPIC},
        CellChannel.AUX_COMMUNICATION: {"__sync_runner__", "__job_heartbeat__"},
        CellChannel.SERVER_COMMAND: {"get_task"},
    },
    ("server job", "site"): {},
    ("site", "server"): _BYE | {CellChannel.CLIENT_MAIN: {ANY}},
    ("site", "site job"): _BYE | {CellChannel.CLIENT_MAIN: {ANY}},
    ("site job", "site"): _BYE | {CellChannel.CLIENT_COMMAND: {"abort", "abort_task"}},
    ("site job", "server"): _BYE,
    ("site job", "server job"): _BYE | _ANSWERS | {CHANNEL: {TOPIC}, CellChannel.AUX_COMMUNICATION: {"__end_run__"}},
    ("person", "server"): _BYE
    | _ANSWERS
    | {CellChannel.HCI: {ANY}, CellChannel.AUX_COMMUNICATION: _FILES, _DOWNLOADS: {ANY}},
}
"""(who hears, who asks) -> channel -> topics of requests; what is not named here is refused.

What a site does of that which comes by the channel of orders, :mod:`medveil.federation.engine.orders` narrows further.
"""

STREAMED = {
    CellChannel.AUX_COMMUNICATION,
    CellChannel.SERVER_COMMAND,
    CellChannel.HCI,
    CellChannel.RETURN_ONLY,
    _DOWNLOADS,
}
"""Channels whose requests come in pieces."""

TELL_EVERY_S = 15.0
MOST_PEERS = 256
_log = logging.getLogger("medveil.network")


def role(cell: str) -> Role | None:
    """What a process is, by its name in the engine; None for a name that nobody here has."""
    root, *rest = cell.split(".")
    if len(rest) > 1 or (rest and not JOB_ID.fullmatch(rest[0])) or not _NAME.fullmatch(root):
        return None
    if is_valid_admin_client_name(root):
        return None if rest else "person"
    if root == SERVER:
        return "server job" if rest else "server"
    return "site job" if rest else "site"


def refusal(me: str, peer: str, headers: Mapping[str, Any]) -> str | None:
    """Why a message is neither heard nor passed on; None for one that is.

    Args:
        me: name of the process that received it.
        peer: name at the other end of the connection, which the certificate shown there confirmed.
        headers: of the message; any value may be a lie.
    """
    origin, destination = headers.get(MessageHeaderKey.ORIGIN), headers.get(MessageHeaderKey.DESTINATION)
    if not isinstance(origin, str) or not isinstance(destination, str) or role(origin) is None:
        return "it names no sender and receiver of this federation"
    if not _neighbours(me, peer):
        return "no process of this name belongs here"
    if not _speaks_for(me, peer, origin):
        return "the sender is not who stands at the other end of the connection"
    if headers.get(MessageHeaderKey.CONN_URL):
        return "it offers a connection besides those to the server"
    if destination == me:
        return None if _heard(me, origin, headers) else "what it brings is not for here"
    return None if _passed_on(me, origin, destination, headers) else "it is not passed on"


def _heard(me: str, origin: str, headers: Mapping[str, Any]) -> bool:
    """Whether ``me`` takes a message of ``origin`` that is for it."""
    kind = headers.get(MessageHeaderKey.MSG_TYPE)
    if kind == MessageType.REPLY:
        return True  # the engine matches it with whom was asked
    if kind == MessageType.RETURN:
        return _returned(origin, headers)
    return bool(kind == MessageType.REQ) and _asked(me, origin, headers)


def _neighbours(me: str, peer: str) -> bool:
    """Whether ``peer`` is one that ``me`` has connections with."""
    mine, theirs = role(me), role(peer)
    if mine == "server":
        return theirs in {"site", "site job", "person", "server job"}
    if mine == "site":
        return peer == SERVER or (theirs == "site job" and _parent(peer) == me)
    if mine == "site job":
        return peer in {SERVER, _parent(me)}
    return mine in {"server job", "person"} and peer == SERVER


def _speaks_for(me: str, peer: str, origin: str) -> bool:
    """Whether ``peer`` can bring a message of ``origin``."""
    if origin == peer or (me == SERVER and _parent(origin) == peer):
        return True
    if role(me) == "server job":
        return role(origin) in {"site job", "site"} and (_job(origin) in {_job(me), None})
    if role(me) == "site job":
        return origin in {SERVER, f"{SERVER}.{_job(me)}", _parent(me)} and (peer == SERVER or origin != peer)
    return role(me) == "site" and peer == SERVER and role(origin) == "server job"


def _passed_on(me: str, origin: str, destination: str, headers: Mapping[str, Any]) -> bool:
    """Whether ``me`` forwards from ``origin`` to ``destination``: only between both sides of one job."""
    ends = {role(origin), role(destination)}
    if me == SERVER:
        if ends == {"site", "server job"}:  # a site tells that it could not pass something on
            named = headers.get(MessageHeaderKey.CHANNEL), headers.get(MessageHeaderKey.TOPIC)
            return bool(named == (STREAM_CHANNEL, STREAM_ERROR_TOPIC))
        return ends == {"site job", "server job"} and _job(origin) == _job(destination)
    if role(me) != "site" or me not in {_parent(origin), _parent(destination)}:
        return False
    other = destination if _parent(origin) == me else origin
    job = _job(origin if _parent(origin) == me else destination)
    return other in {SERVER, f"{SERVER}.{job}"}


def _returned(origin: str, headers: Mapping[str, Any]) -> bool:
    """Whether ``origin`` can say of a message that it could not be delivered."""
    if origin == SERVER:
        return True
    original = headers.get(MessageHeaderKey.ORIGINAL_HEADERS)
    target = original.get(MessageHeaderKey.DESTINATION) if isinstance(original, Mapping) else None
    return isinstance(target, str) and (target == origin or _parent(target) == origin)


def _asked(me: str, origin: str, headers: Mapping[str, Any]) -> bool:
    """Whether ``origin`` may ask ``me`` for what the headers name."""
    mine, theirs = role(me), role(origin)
    heard = HEARD.get((mine, theirs)) if mine and theirs else None
    if heard is None:
        return False
    channel, topic = headers.get(MessageHeaderKey.CHANNEL), headers.get(MessageHeaderKey.TOPIC)
    if channel == STREAM_CHANNEL:
        if topic == STREAM_ERROR_TOPIC:
            return True  # ends a stream of ours, no more
        if topic == STREAM_ACK_TOPIC:
            return bool(heard)
        if topic != STREAM_DATA_TOPIC:
            return False
        channel, topic = headers.get(StreamHeaderKey.CHANNEL), headers.get(StreamHeaderKey.TOPIC)
        if not isinstance(channel, str) or channel not in STREAMED:
            return False
    topics = heard.get(channel, set()) if isinstance(channel, str) else set()
    return isinstance(topic, str) and (topic in topics or ANY in topics)


def _parent(cell: str) -> str | None:
    root, dot, _ = cell.partition(".")
    return root if dot else None


def _job(cell: str) -> str | None:
    return cell.partition(".")[2] or None


class _Teller:
    """Log lines about refusals: of each peer not more than one every few seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._peers: dict[str, tuple[float, int]] = {}

    def tell(self, peer: str, headers: Mapping[str, Any], why: str) -> None:
        now = time.monotonic()
        with self._lock:
            told, untold = self._peers.get(peer, (-TELL_EVERY_S, 0))
            quiet = now - told < TELL_EVERY_S
            if len(self._peers) >= MOST_PEERS:
                self._peers.clear()
            self._peers[peer] = (told, untold + 1) if quiet else (now, 0)
        if not quiet:
            shown = [repr(str(headers.get(key))[:60]) for key in (MessageHeaderKey.ORIGIN, MessageHeaderKey.TOPIC)]
            _log.warning("refused a message by %r from %s, topic %s: %s (%d before)", peer, *shown, why, untold)


_TELLER = _Teller()
_STREAMS = Streams()


def install_guard() -> None:
    """Put the rules in front of everything that the processes of the engine receive. Doing it twice does no harm."""
    received = CoreCell.process_message
    if marked(received):
        return

    def process_message(self: Any, endpoint: Any, connection: Any, app_id: int, message: Any) -> None:
        me = self.my_info.fqcn
        why = refusal(me, endpoint.name, message.headers)
        if why is None and message.headers.get(MessageHeaderKey.DESTINATION) == me:
            why = _STREAMS.refusal(message.headers, message.payload)
        if why is not None:
            _TELLER.tell(endpoint.name, message.headers, why)
            return
        received(self, endpoint, connection, app_id, message)

    mark(process_message)
    CoreCell.process_message = process_message
