"""What a site does at the server's order: the steps of a job, and nothing else, whatever the engine would offer."""

import io
import logging
import struct
import zipfile
from typing import Any

from nvflare.apis.job_def import JobMetaKey
from nvflare.apis.shareable import Shareable
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.cellnet.utils import new_cell_message
from nvflare.fuel.f3.message import Message as CellMessage
from nvflare.private.admin_defs import Message, MsgHeader, ReturnCode, error_reply, ok_reply
from nvflare.private.defs import ERROR_MSG_PREFIX, RequestHeader, TrainingTopic
from nvflare.private.fed.client.admin import FedAdminAgent
from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors
from nvflare.private.scheduler_constants import ShareableHeader

from medveil.federation.engine.channel import SERVER
from medveil.federation.engine.guard import JOB_ID
from medveil.federation.engine.patched import mark, marked

OF_A_JOB = frozenset(
    {
        TrainingTopic.CHECK_RESOURCE,
        TrainingTopic.DEPLOY,
        TrainingTopic.START_JOB,
        TrainingTopic.ABORT,
        TrainingTopic.ABORT_TASK,
        TrainingTopic.DELETE_RUN,
    }
)
"""Orders of the server that name a job."""
OF_THE_SERVER = OF_A_JOB | {TrainingTopic.CANCEL_RESOURCE}
OF_OWN_JOB = frozenset({TrainingTopic.NOTIFY_JOB_STATUS})
"""What a job's own process tells."""

MOST_PACKED = 8 << 20
MOST_UNPACKED = 32 << 20
MOST_FILES = 100
"""Of a job's files: they are a plan and settings."""

REFUSED = f"{ERROR_MSG_PREFIX}: this site does not do that"
FAILED = f"{ERROR_MSG_PREFIX}: the site could not do that; its own log says why"

_log = logging.getLogger("medveil.jobs")


def obeyed(origin: str, order: object) -> bool:
    """Whether an order of the process ``origin`` is one that this site follows."""
    if not isinstance(order, Message):
        return False
    topic, job_id = order.topic, order.get_header(RequestHeader.JOB_ID)
    if origin != SERVER:
        own = isinstance(job_id, str) and origin.endswith(f".{job_id}")
        return own and topic in OF_OWN_JOB and JOB_ID.fullmatch(str(job_id)) is not None
    if topic not in OF_THE_SERVER:
        return False
    if topic in OF_A_JOB and not (isinstance(job_id, str) and JOB_ID.fullmatch(job_id)):
        return False  # it becomes the name of a folder and part of a command
    if topic in {TrainingTopic.DEPLOY, TrainingTopic.START_JOB}:
        meta = order.get_header(RequestHeader.JOB_META)
        if not isinstance(meta, dict) or meta.get(JobMetaKey.JOB_ID.value) != job_id:
            return False
    return topic != TrainingTopic.DEPLOY or _modest(order.body)


def _modest(packed: object) -> bool:
    """Whether a job's files are few and small, as they are when unpacked."""
    if not isinstance(packed, bytes | bytearray | memoryview) or len(packed) > MOST_PACKED:
        return False
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as files:
            entries = files.infolist()
    except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, OSError):
        return False
    return len(entries) <= MOST_FILES and sum(entry.file_size for entry in entries) <= MOST_UNPACKED


def told(order: Message, reply: Message) -> Message:
    """What the server is told of the outcome: which one it was, and no text of this site."""
    body = reply.body
    if order.topic == TrainingTopic.CHECK_RESOURCE and isinstance(body, Shareable):
        enough = body.get_header(ShareableHeader.IS_RESOURCE_ENOUGH, False) is True
        answer = Shareable()
        answer.set_header(ShareableHeader.IS_RESOURCE_ENOUGH, enough)
        token = body.get_header(ShareableHeader.RESOURCE_RESERVE_TOKEN, "") if enough else ""
        answer.set_header(ShareableHeader.RESOURCE_RESERVE_TOKEN, token)
        return Message(topic=f"reply_{order.topic}", body=answer)
    if order.topic == TrainingTopic.CANCEL_RESOURCE:
        return Message(topic=f"reply_{order.topic}", body=Shareable())
    failed = reply.get_header(MsgHeader.RETURN_CODE, ReturnCode.OK) != ReturnCode.OK
    if failed or (isinstance(body, str) and body.startswith(ERROR_MSG_PREFIX)):
        _log.warning("an order of the server, %s, was not carried out: %s", order.topic, str(body)[:300])
        return error_reply(FAILED)
    return ok_reply(topic=f"reply_{order.topic}", body="OK")


def install_orders() -> None:
    """Leave a site only what a job needs. Doing it twice does no harm."""
    kept = OF_THE_SERVER | OF_OWN_JOB
    ClientRequestProcessors.request_processors[:] = [
        one for one in ClientRequestProcessors.request_processors if kept.issuperset(one.get_topics())
    ]
    dispatch = FedAdminAgent._dispatch_request  # noqa: SLF001 - the engine has no other door
    if marked(dispatch):
        return

    def dispatch_request(self: Any, request: CellMessage) -> CellMessage:
        origin, order = str(request.get_header(MessageHeaderKey.ORIGIN)), request.payload
        try:
            if not obeyed(origin, order):
                _log.warning("refused an order by %r: %r", origin[:60], str(getattr(order, "topic", None))[:60])
                return new_cell_message({}, error_reply(REFUSED))
            return new_cell_message({}, told(order, dispatch(self, request).payload))
        except Exception:  # noqa: BLE001 - what went wrong here is not for the server
            _log.exception("an order of the server could not be carried out")
            return new_cell_message({}, error_reply(FAILED))

    mark(dispatch_request)
    FedAdminAgent._dispatch_request = dispatch_request  # noqa: SLF001 - as above
