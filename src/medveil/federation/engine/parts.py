"""A program as a job of the engine: a controller at the server, an executor at each site."""

import threading
from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.impl.wf_comm_server import WFCommServer
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal

from medveil.errors import MedveilError
from medveil.federation.engine.channel import SERVER, CellChannel
from medveil.federation.engine.context import Ending, JobContext
from medveil.federation.engine.signed import read_manifest, signer
from medveil.federation.engine.status import clear_returned, read_status, write_status

POLL_S = 0.1
FINISH_S = 8.0
"""How long a site's program may take to end after the job did; the engine kills the process after ten seconds."""


class EngineController(Controller):  # type: ignore[misc] # the engine has no types
    """Runs the coordinator's program as the whole of a job; that sites die is the program's affair."""

    @abstractmethod
    def program(self, job: JobContext) -> Ending:
        """The coordinator's program. Returns when the run is complete or this job is not to go on."""

    def set_communicator(self, communicator: object) -> None:
        """Replace the engine's communicator, which aborts a job when a site stays away for a minute."""
        del communicator
        super().set_communicator(_Patient())

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Nothing to prepare."""

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Nothing to clear up."""

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Run the program, and keep account of how it ended."""
        workspace, job_id = fl_ctx.get_workspace(), fl_ctx.get_job_id()
        home = Path(workspace.get_root_dir())
        status = read_status(home, job_id)
        status = replace(status, unstarted=0)
        write_status(home, job_id, replace(status, status="running"))
        clear_returned(home, Path(workspace.get_app_dir(job_id)).stat().st_mtime)
        try:
            ending = self._run(abort_signal, fl_ctx, home)
        except MedveilError as error:
            self.log_error(fl_ctx, f"the coordinator stopped: {error}", fire_event=False)
            ending = "failed"
        except Exception:  # noqa: BLE001 - the engine would hand a defect's text to all who hear its log events
            self.log_exception(fl_ctx, "the coordinator stopped by a defect", fire_event=False)
            ending = "failed"
        if abort_signal.triggered and ending != "done":
            return  # cut off from outside: whether by the submitter, the server's parent process knows
        write_status(home, job_id, replace(status, status=ending))
        if ending == "failed":
            self.system_panic("the run failed; the server's log says why", fl_ctx)

    def _run(self, abort_signal: Signal, fl_ctx: FLContext, home: Path) -> Ending:
        sites = tuple(sorted(client.name for client in fl_ctx.get_engine().get_clients()))
        with _Job(fl_ctx, home, SERVER, sites, sites, abort_signal) as job:
            return self.program(job)

    def process_result_of_unknown_task(self, *args: object, **kwargs: object) -> None:
        """There are no tasks."""


class _Patient(WFCommServer):  # type: ignore[misc] # the engine has no types
    """A communicator that hands out no tasks and counts nobody as dead."""

    def __init__(self) -> None:
        super().__init__()
        self._told: set[str] = set()

    def process_dead_client_report(self, client_name: str, fl_ctx: FLContext) -> None:
        if client_name not in self._told:
            self._told.add(client_name)
            self.log_warning(fl_ctx, f"the engine reports that {client_name} no longer runs this job", fire_event=False)


class EngineExecutor(Executor):  # type: ignore[misc] # the engine has no types
    """Runs a site's program beside the engine's own loop, from the start of a job to its end."""

    def __init__(self) -> None:
        super().__init__()
        self._thread: threading.Thread | None = None
        self._ended = Signal()

    @abstractmethod
    def program(self, job: JobContext) -> None:
        """The site's program. To return soon after ``job.abort`` is set."""

    @abstractmethod
    def refused(self, home: Path, job_id: str, error: Exception) -> None:
        """Keep account of a job that is not what its submitter signed; nothing of it was run.

        Args:
            home: the site's own folder, the root of its kit.
            job_id: the engine's name of the job.
            error: why.
        """

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Start and stop with the job."""
        if event_type == EventType.START_RUN:
            engine = fl_ctx.get_engine()
            self._thread = threading.Thread(target=self._run, args=(engine,), daemon=True, name="medveil-site")
            self._thread.start()
        elif event_type in {EventType.ABOUT_TO_END_RUN, EventType.ABORT_TASK}:
            self._ended.trigger(True)
            if self._thread is not None:
                self._thread.join(FINISH_S)

    def _run(self, engine: Any) -> None:
        with engine.new_context() as fl_ctx:
            home = Path(fl_ctx.get_workspace().get_root_dir())
            try:
                with self._checked(fl_ctx, home) as job:
                    self.program(job)
            except MedveilError as error:
                self.log_error(fl_ctx, f"the site stopped: {error}", fire_event=False)
            except Exception:  # noqa: BLE001 - the top of a thread: a defect would go to no log
                self.log_exception(fl_ctx, "the site stopped by a defect", fire_event=False)

    def _checked(self, fl_ctx: FLContext, home: Path) -> "_Job":
        try:
            return _Job(fl_ctx, home, fl_ctx.get_identity_name(), (), (SERVER,), self._ended)
        except Exception as error:  # whatever a changed job makes of its check: it goes to the site's account, and on
            try:
                self.refused(home, fl_ctx.get_job_id(), error)
            except MedveilError as unwritten:
                self.log_error(fl_ctx, f"that a job was refused could not be noted: {unwritten}", fire_event=False)
            raise

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """There are no tasks: one that comes is refused."""
        del task_name, shareable, fl_ctx, abort_signal
        return make_reply("TASK_UNKNOWN")


class _Job:
    """The context of one job, alive inside ``with``."""

    def __init__(
        self,
        fl_ctx: FLContext,
        home: Path,
        me: str,
        sites: tuple[str, ...],
        peers: tuple[str, ...],
        ended: Signal,
    ) -> None:
        job_id, workspace = fl_ctx.get_job_id(), fl_ctx.get_workspace()
        app = Path(workspace.get_app_dir(job_id))
        submitter = signer(app, Path(workspace.get_startup_kit_dir()) / "rootCA.pem")
        manifest = read_manifest(app, sites if me == SERVER else (me,))
        self._channel = CellChannel(fl_ctx.get_engine().get_cell(), job_id, peers)
        self._ended = ended
        self._left = threading.Event()
        self._abort = threading.Event()
        self._context = JobContext(job_id, me, sites, app, home, submitter, self._abort, self._channel, manifest.nonce)

    def __enter__(self) -> JobContext:
        threading.Thread(target=self._watch, daemon=True, name="medveil-abort").start()
        return self._context

    def _watch(self) -> None:
        while not self._ended.triggered:
            if self._left.wait(POLL_S):
                return
        self._abort.set()

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._channel.close()
