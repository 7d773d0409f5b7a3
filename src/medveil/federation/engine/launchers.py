"""Start job processes with the same Python and our transport, and never let one site's crash end a job."""

import logging
import shlex
from pathlib import Path

from nvflare.apis.fl_constant import FLContextKey, FLMetaKey, JobConstants
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobHandleSpec, JobProcessArgs, JobReturnCode
from nvflare.app_common.job_launcher.client_process_launcher import ClientProcessJobLauncher
from nvflare.app_common.job_launcher.server_process_launcher import ServerProcessJobLauncher

_log = logging.getLogger("medveil.jobs")


class SiteLauncher(ClientProcessJobLauncher):  # type: ignore[misc] # the engine has no types
    """Job processes at a site."""

    def get_command(self, job_meta: dict[str, object], fl_ctx: FLContext) -> str:
        """The engine's command, with our module in front."""
        _use_module(fl_ctx, "medveil.federation.engine.site_process")
        return str(super().get_command(job_meta, fl_ctx))

    def launch_job(self, job_meta: dict[str, object], fl_ctx: FLContext) -> JobHandleSpec:
        """Start the process; its return code is kept from the server."""
        workspace = fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT)
        folder = Path(workspace.get_run_dir(str(job_meta.get(JobConstants.JOB_ID))))
        return _Quiet(super().launch_job(job_meta, fl_ctx), folder / FLMetaKey.PROCESS_RC_FILE)


class ServerLauncher(ServerProcessJobLauncher):  # type: ignore[misc] # the engine has no types
    """Job processes at the server."""

    def get_command(self, job_meta: dict[str, object], fl_ctx: FLContext) -> str:
        """The engine's command, with our module in front."""
        _use_module(fl_ctx, "medveil.federation.engine.server_process")
        return str(super().get_command(job_meta, fl_ctx))


def _use_module(fl_ctx: FLContext, module: str) -> None:
    arguments = fl_ctx.get_prop(FLContextKey.JOB_PROCESS_ARGS)
    for name, (option, value) in list(arguments.items()):
        if name != JobProcessArgs.OPTIONS:  # several words on purpose, from this machine's own settings
            arguments[name] = (option, shlex.quote(str(value)))  # some come from the server: each stays one word
    arguments[JobProcessArgs.EXE_MODULE] = ("-m", module)


class _Quiet(JobHandleSpec):  # type: ignore[misc] # the engine has no types
    """A job process whose crash is logged here and not reported: the server would abort the job for all sites."""

    def __init__(self, handle: JobHandleSpec, code_file: Path) -> None:
        super().__init__()
        self._handle = handle
        self._code_file = code_file

    def terminate(self, **_: object) -> None:
        self._handle.terminate()

    def wait(self) -> None:
        self._handle.wait()
        self._code_file.unlink(missing_ok=True)  # the engine would report what it says

    def poll(self) -> int:
        code = int(self._handle.poll())
        if code in {JobReturnCode.UNKNOWN, JobReturnCode.SUCCESS}:
            return code
        _log.error("a job's process ended with code %d; the run goes on without this site", code)
        return int(JobReturnCode.SUCCESS)
