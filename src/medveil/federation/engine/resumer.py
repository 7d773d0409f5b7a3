"""Continue a run whose job was cut off: the engine's jobs do not resume, so a further one follows."""

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey, SystemComponents
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import Job, JobMetaKey, RunStatus
from nvflare.apis.utils.job_utils import get_event_job_id
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.message import Message
from nvflare.private.defs import CellChannel, CellChannelTopic, ClientType, JobFailureMsgKey
from nvflare.private.fed.server.job_cmds import CLONED_META_KEYS

from medveil.federation.engine.status import (
    RETURNED,
    JobStatus,
    known_jobs,
    read_status,
    spared_sites,
    write_status,
)

SUBMITTER_KEYS = (JobMetaKey.SUBMITTER_NAME, JobMetaKey.SUBMITTER_ORG, JobMetaKey.SUBMITTER_ROLE)

MOST_UNSTARTED = 5
NEVER_BEGUN = {
    state.value
    for state in (
        RunStatus.DISPATCHED,
        RunStatus.RUNNING,
        RunStatus.FAILED_TO_RUN,
        RunStatus.FINISHED_ABNORMAL,
        RunStatus.FINISHED_EXECUTION_EXCEPTION,
    )
}
"""States of a job that is over and whose program did not begin: its process was killed, or could not start."""


class Resumer(FLComponent):  # type: ignore[misc] # the engine has no types
    """A part of the server's parent process.

    A job whose file says ``running`` though nothing runs it, or ``again``, is continued by a copy with the same
    files, submitter and signature, which the scheduler starts when all its sites are there; unless a person aborted it.
    A site that comes back while a job runs without it is noted in ``HOME/medveil/returned/`` for the job's program.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._engine: Any = None
        self._home = Path()

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Look at jobs when the server starts and whenever one ends, and note who returns."""
        if event_type == EventType.SYSTEM_START:
            self._engine = fl_ctx.get_engine()
            self._home = Path(fl_ctx.get_workspace().get_root_dir())
            cell = fl_ctx.get_engine().get_cell()
            cell.core_cell.add_incoming_request_filter(
                CellChannel.SERVER_MAIN, CellChannelTopic.REPORT_JOB_FAILURE, self._process_ended
            )
            for job_id in self._cut_off(fl_ctx):
                self._continue(job_id)
        elif self._engine is None:
            return  # a job's process builds this part too
        elif event_type in {EventType.JOB_COMPLETED, EventType.JOB_ABORTED}:
            threading.Thread(target=self._ended, args=(get_event_job_id(fl_ctx),), daemon=True).start()
        elif event_type == EventType.CLIENT_REGISTER_PROCESSED:
            self._registered(fl_ctx)

    def _cut_off(self, fl_ctx: FLContext) -> set[str]:
        """Jobs that were under way when the server stopped: nothing has been started since."""
        manager = fl_ctx.get_engine().get_component(SystemComponents.JOB_MANAGER)
        begun = manager.get_jobs_by_status([RunStatus.RUNNING, RunStatus.DISPATCHED], fl_ctx)
        return {*known_jobs(self._home), *(job.job_id for job in begun)}

    def _ended(self, job_id: str | None) -> None:
        if job_id:
            self._continue(job_id)

    def _continue(self, job_id: str) -> None:
        with self._lock, self._engine.new_context() as fl_ctx:
            status = read_status(self._home, job_id)
            manager = fl_ctx.get_engine().get_component(SystemComponents.JOB_MANAGER)
            job = manager.get_job(job_id, fl_ctx)
            if job is None or status.next is not None:
                return
            state = job.meta.get(JobMetaKey.STATUS.value)
            if status.status in {"running", "waiting"} and state == RunStatus.FINISHED_ABORTED.value:
                write_status(self._home, job_id, replace(status, status="aborted"))
            elif status.status in {"running", "again"}:
                self._clone(manager, job, status, fl_ctx)
            elif status.status == "waiting" and state in NEVER_BEGUN:
                if status.unstarted < MOST_UNSTARTED and (state != RunStatus.FAILED_TO_RUN.value or _undelivered(job)):
                    self._clone(manager, job, replace(status, unstarted=status.unstarted + 1), fl_ctx)
                else:
                    write_status(self._home, job_id, replace(status, status="failed"))

    def _clone(self, manager: Any, job: Job, status: JobStatus, fl_ctx: FLContext) -> None:
        kept = {*CLONED_META_KEYS, *(key.value for key in SUBMITTER_KEYS)}
        meta = {str(key): value for key, value in job.meta.items() if str(key) in kept}
        meta[JobMetaKey.CLONED_FROM.value] = job.job_id
        spared = spared_sites(self._home, status.of)
        needed = [site for site in job.meta.get(JobMetaKey.MANDATORY_CLIENTS.value) or [] if site not in spared]
        meta |= {JobMetaKey.MANDATORY_CLIENTS.value: needed, JobMetaKey.MIN_CLIENTS.value: max(1, len(needed))}
        if job.meta.get(JobMetaKey.STATUS.value) in {RunStatus.RUNNING.value, RunStatus.DISPATCHED.value}:
            manager.set_status(job.job_id, RunStatus.ABANDONED, fl_ctx)
        meta = manager.clone(from_jid=job.job_id, meta=meta, fl_ctx=fl_ctx)
        fresh = str(meta[JobMetaKey.JOB_ID.value])
        write_status(self._home, fresh, JobStatus("waiting", status.of, status.attempt + 1, unstarted=status.unstarted))
        write_status(self._home, job.job_id, replace(status, next=fresh))
        self.log_info(fl_ctx, f"job {job.job_id} is continued as {fresh}, attempt {status.attempt + 1}")

    def _registered(self, fl_ctx: FLContext) -> None:
        """A site came back, and its former processes died with their parent."""
        if fl_ctx.get_prop(FLContextKey.CLIENT_TYPE) != ClientType.REGULAR:
            return  # a person
        peer = fl_ctx.get_peer_context()
        name = peer.get_identity_name(default="") if peer is not None else ""
        engine = fl_ctx.get_engine()
        for job_id in engine.job_runner.get_client_outcome_jobs(name):
            engine.job_runner.resolve_client_outcome(job_id, name)
        if engine.run_processes:
            self._returned(name)

    def _process_ended(self, message: Message) -> None:
        """A site reports the end of a job's process: if the job goes on, the site could take part again."""
        payload = message.payload
        if isinstance(payload, dict) and payload.get(JobFailureMsgKey.JOB_ID) in self._engine.run_processes:
            self._returned(str(message.get_header(MessageHeaderKey.ORIGIN)))

    def _returned(self, name: str) -> None:
        if Path(name).name != name:
            return
        folder = self._home / "medveil" / RETURNED
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{time.time():.0f}\n", "utf-8")


def _undelivered(job: Job) -> bool:
    """Whether a job could not start only because a site did not answer; one that refuses is not asked again."""
    details = job.meta.get(JobMetaKey.JOB_DEPLOY_DETAIL.value) or []
    return all(str(line).endswith(": OK") or "no reply" in str(line) for line in details)
