"""What people can ask of the server: what ``medveil connect`` uses, whatever else the engine's console would offer."""

import logging
from pathlib import Path
from typing import Any

from nvflare.apis.fl_constant import AdminCommandNames
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.streamers import file_streamer
from nvflare.fuel.hci.conn import Connection
from nvflare.fuel.hci.proto import InternalCommands, MetaStatusValue, make_meta
from nvflare.fuel.hci.server.authz import AuthzFilter
from nvflare.fuel.hci.server.constants import ConnProps

from medveil.federation.engine.patched import mark, marked

OFFERED = frozenset(
    {
        InternalCommands.CERT_LOGIN,
        InternalCommands.LOGOUT,
        InternalCommands.GET_CMD_LIST,
        InternalCommands.CHECK_SESSION,
        AdminCommandNames.SUBMIT_JOB,
        AdminCommandNames.LIST_JOBS,
        AdminCommandNames.GET_JOB_META,
        AdminCommandNames.ABORT_JOB,
        AdminCommandNames.DOWNLOAD_JOB,
        AdminCommandNames.GET_JOB_LOG,
        AdminCommandNames.CHECK_STATUS,
    }
)
"""Commands; whether a role may use them, the kit's ``authorization.json`` says."""

OF_THE_SERVER = {
    AdminCommandNames.CHECK_STATUS: (1, "server"),
    AdminCommandNames.GET_JOB_LOG: (2, "server"),
}
"""Commands -> position and value of their argument: about the server only, never about a site."""

MOST_UPLOADED = 16 << 20
"""Bytes of a file that a person sends, a job; the engine takes it in before it asks who may submit."""

_log = logging.getLogger("medveil.network")


def offered(words: list[str]) -> bool:
    """Whether a command is one that people may give."""
    if not words or words[0] not in OFFERED:
        return False
    position, value = OF_THE_SERVER.get(words[0], (0, words[0]))
    return len(words) > position and words[position] == value


def install_commands() -> None:
    """Refuse all other commands, before their rights are looked at, and large files. Doing it twice does no harm."""
    _limit_uploads()
    before = AuthzFilter.pre_command
    if marked(before):
        return

    def pre_command(self: Any, conn: Connection, args: list[str]) -> bool:
        entry = conn.get_prop(ConnProps.CMD_ENTRY, None)
        words = [str(entry.name), *args[1:]] if entry is not None and args else []
        if not offered(words):
            _log.warning("refused a command of %r: %r", conn.get_prop(ConnProps.USER_NAME, ""), " ".join(args)[:80])
            text = "this server does not do that"
            conn.append_error(text, meta=make_meta(MetaStatusValue.NOT_AUTHORIZED, text))
            return False
        return bool(before(self, conn, args))

    mark(pre_command)
    AuthzFilter.pre_command = pre_command


def _limit_uploads() -> None:
    consumer = file_streamer._ChunkConsumer  # noqa: SLF001 - the engine has no limit of its own
    taken = consumer.consume
    if marked(taken):
        return

    def consume(self: Any, shareable: Shareable, *contexts: FLContext) -> tuple[bool, Shareable]:
        data = shareable.get(file_streamer.KEY_DATA) or b""
        if self.received_size + len(data) > MOST_UPLOADED:
            self.file.close()
            Path(self.file.name).unlink(missing_ok=True)
            raise ValueError(f"a file of more than {MOST_UPLOADED} bytes is not taken")
        answer: tuple[bool, Shareable] = taken(self, shareable, *contexts)
        return answer

    mark(consume)
    consumer.consume = consume
