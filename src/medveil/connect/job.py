"""Submit a plan as a signed job, and follow it, with the kit of the person who leads the study."""

import contextlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile

from nvflare.apis.fl_exception import FLCommunicationError
from nvflare.apis.job_def import JobMetaKey
from nvflare.fuel.common.excepts import ConfigError as EngineConfigError
from nvflare.fuel.f3.comm_error import CommError
from nvflare.fuel.flare_api.api_spec import (
    AuthenticationError,
    AuthorizationError,
    ClientsStillRunning,
    CommandError,
    InternalError,
    InvalidArgumentError,
    InvalidJobDefinition,
    InvalidTarget,
    JobNotDone,
    JobNotFound,
    JobNotRunning,
    JobTimeout,
    NoClientsAvailable,
    NoConnection,
    NoReply,
    SessionClosed,
    SubmitTokenConflict,
    SubmitTokenJobDeleted,
)
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session

from medveil.connect import kit_files
from medveil.connect.jobs import RESULT
from medveil.connect.kit import Kit, read_kit
from medveil.errors import ConfigError, FederationError, MedveilError, RunError
from medveil.federation.engine.driver import install
from medveil.federation.engine.signed import write_manifest

APP = "app"
CONNECT_S = 15.0
TASK_POLL_S = 2.0
"""How soon a site's process notices that a job has ended, if the message that says so was lost."""


@dataclass(frozen=True)
class Job:
    """A job as the server lists it.

    Attributes:
        job_id: the engine's name.
        name: of the run.
        status: the engine's word, for example ``RUNNING`` or ``FINISHED:COMPLETED``.
        submitter: who submitted it.
        submitted: when, ISO 8601.
        continues: the job that this one continues, or None.
    """

    job_id: str
    name: str
    status: str
    submitter: str
    submitted: str
    continues: str | None


def build_job(
    folder: Path,
    plan: bytes,
    *,
    name: str,
    sites: Sequence[str],
    parts: tuple[str, str] = kit_files.JOB_PARTS,
) -> Path:
    """Write the files of a job.

    Args:
        folder: existing; the job becomes ``folder/name``.
        plan: the plan as canonical JSON; what sites approve by its hash.
        name: of the run: letters, digits, dots, hyphens and underscores.
        sites: who takes part; the job starts when all of them are there.
        parts: the site's and the server's class.

    Returns:
        The job's folder, unsigned, with a manifest that binds its files together under a nonce of its own.
    """
    site_part, coordinator_part = parts
    job = folder / name
    (job / APP / "config").mkdir(parents=True)
    meta = {
        "name": name,
        "deploy_map": {APP: ["server", *sites]},
        "min_clients": len(sites),
        "mandatory_clients": list(sites),
        "resource_spec": {},
        "custom_props": {"medveil_version": version("medveil")},
    }
    server = {
        "format_version": 2,
        "server": {"heart_beat_timeout": 60, "task_request_interval": TASK_POLL_S},
        "task_data_filters": [],
        "task_result_filters": [],
        "workflows": [{"id": "medveil", "path": coordinator_part, "args": {}}],
        "components": [],
    }
    client = {
        "format_version": 2,
        "executors": [{"tasks": ["medveil"], "executor": {"path": site_part, "args": {}}}],
        "task_data_filters": [],
        "task_result_filters": [],
        "components": [],
    }
    for path, content in (
        (job / "meta.json", meta),
        (job / APP / "config" / "config_fed_server.json", server),
        (job / APP / "config" / "config_fed_client.json", client),
    ):
        path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    (job / APP / "plan.json").write_bytes(plan)
    write_manifest(job / APP, name=name, sites=sites)
    return job


class Federation:
    """A login at the server. Used with ``with``.

    Args:
        folder: kit of the person who logs in.

    Raises:
        ConfigError: not a person's kit.
        FederationError: the server cannot be reached, or does not accept the kit.
    """

    def __init__(self, folder: Path) -> None:
        install()
        self._kit = read_kit(folder, "person")
        with _here(self._kit), _typed(self._kit):
            self._session: Session = new_secure_session(
                self._kit.name, str(self._kit.folder), timeout=CONNECT_S, auto_login_max_tries=1
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
            self._session.close()

    def submit(
        self, plan: bytes, *, name: str, sites: Sequence[str], parts: tuple[str, str] = kit_files.JOB_PARTS
    ) -> str:
        """Sign and submit a plan; the arguments are those of :func:`build_job`.

        Returns:
            The job's id.

        Raises:
            FederationError: refused, for example because the role may not submit.
        """
        with tempfile.TemporaryDirectory() as temporary, _typed(self._kit):
            return str(
                self._session.submit_job(str(build_job(Path(temporary), plan, name=name, sites=sites, parts=parts)))
            )

    def jobs(self) -> list[Job]:
        """All jobs, the latest last."""
        with _typed(self._kit):
            listed: list[dict[str, Any]] = self._session.list_jobs(detailed=True) or []
        return sorted((_job(meta) for meta in listed), key=lambda job: job.submitted)

    def job(self, job_id: str) -> Job:
        """One job."""
        with _typed(self._kit):
            return _job(self._session.get_job_meta(job_id))

    def abort(self, job_id: str) -> None:
        """End a job; the run is not continued by another."""
        with _typed(self._kit):
            self._session.abort_job(job_id)

    def fetch(self, job_id: str, folder: Path) -> Path:
        """Bring the files of a run that is done onto this machine.

        Args:
            job_id: of its last job.
            folder: new, or empty.

        Returns:
            ``folder``, with ``record.json``.

        Raises:
            RunError: the job left no record: it failed, or another job goes on with its run; or the folder holds files.
            FederationError: the server refuses.
        """
        if folder.exists() and any(folder.iterdir()):
            raise RunError("The folder for the run is not empty", got=str(folder), remedy="choose another --out")
        with tempfile.TemporaryDirectory() as temporary, _typed(self._kit):
            place = Path(self._session.download_job_result(job_id, temporary))
            found = sorted(place.rglob(f"{RESULT}/record.json"))
            if not found:
                raise RunError(
                    "The job left no record",
                    got=f"job {job_id}",
                    expected="the last job of a run that is done",
                    remedy="see how it stands: medveil connect status KIT",
                )
            shutil.copytree(found[0].parent, folder, dirs_exist_ok=True)
        return folder

    def log(self, job_id: str) -> str:
        """The server's log of a job that has ended; those of the sites stay at the sites."""
        with _typed(self._kit):
            logs = self._session.get_job_logs(job_id, target="server").get("logs", {})
        return str(logs.get("server", ""))

    def connected(self) -> dict[str, float]:
        """Sites that are connected -> when the server last heard of them, seconds since 1970."""
        with _typed(self._kit):
            clients = self._session.get_connected_client_list()
        return {client.name: float(client.last_connect_time) for client in clients}


def _job(meta: dict[str, Any]) -> Job:
    return Job(
        job_id=str(meta.get(JobMetaKey.JOB_ID.value)),
        name=str(meta.get(JobMetaKey.JOB_NAME.value)),
        status=str(meta.get(JobMetaKey.STATUS.value)),
        submitter=str(meta.get(JobMetaKey.SUBMITTER_NAME.value)),
        submitted=str(meta.get(JobMetaKey.SUBMIT_TIME_ISO.value)),
        continues=meta.get(JobMetaKey.CLONED_FROM.value),
    )


@contextlib.contextmanager
def _here(kit: Kit) -> Iterator[None]:
    """The engine makes its folders for transfers where the process stands."""
    before = Path.cwd()
    os.chdir(kit.folder)
    try:
        yield
    finally:
        os.chdir(before)


_ENGINE_ERRORS = (
    ClientsStillRunning,
    CommandError,
    InternalError,
    InvalidArgumentError,
    InvalidTarget,
    JobNotDone,
    JobNotRunning,
    JobTimeout,
    NoClientsAvailable,
    NoReply,
    SessionClosed,
    SubmitTokenConflict,
    SubmitTokenJobDeleted,
    FLCommunicationError,
    EngineConfigError,
    CommError,
    BadZipFile,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    OSError,
)
"""What a session of the engine raises: its errors have no base in common, and Python's come through it."""


@contextlib.contextmanager
def _typed(kit: Kit) -> Iterator[None]:
    """The engine's errors as ours, and none of its prints."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except MedveilError:
        raise
    except NoConnection:
        raise FederationError(
            "The server cannot be reached, or does not accept this kit",
            got=f"no connection to {kit.host}:{kit.port}",
            remedy="check that the server runs, that a firewall lets its port through, that the kit is not revoked",
        ) from None
    except (AuthenticationError, AuthorizationError) as error:
        raise FederationError(
            f"The server refuses this to {kit.name}",
            got=str(error)[:300],
            expected="a role that may do it: lead or project_admin to submit; one's own jobs to abort them",
            remedy="ask whoever provisioned the federation",
        ) from None
    except (JobNotFound, InvalidJobDefinition) as error:
        raise ConfigError("There is no such job", got=str(error)[:300], remedy="list the jobs") from None
    except _ENGINE_ERRORS as error:
        raise FederationError(
            "The server did not do as asked", got=f"{type(error).__name__}: {str(error)[:300]}", remedy="see its log"
        ) from None
