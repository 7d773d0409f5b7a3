"""The classes that a job may name: they run medveil's own programs and take nothing from the job but its plan."""

import gc
from pathlib import Path

from medveil.errors import MedveilError
from medveil.federation.engine.context import Ending, JobContext
from medveil.federation.engine.parts import EngineController, EngineExecutor


class SiteExecutor(EngineExecutor):
    """A site's part of a job."""

    def program(self, job: JobContext) -> None:
        """Take part in the run."""
        from medveil.connect.site_program import run_site

        _settle()
        run_site(job)

    def refused(self, home: Path, job_id: str, error: Exception) -> None:
        """Note in the site's audit log, and for its people, that a job was not run.

        Raises:
            AuditLogError: the log cannot be written.
            ConfigError: the site's identity key cannot be read.
        """
        from medveil.connect.home import Home
        from medveil.connect.observing import SiteObserver

        own = Home(home)
        own.audit_log().append("job-refused", job=job_id, error=type(error).__name__)
        why = error.what if isinstance(error, MedveilError) else "its files cannot be read"
        SiteObserver(own.folder, job_id).stopped(f"does not take part: {why}")


class CoordinatorController(EngineController):
    """The server's part of a job."""

    def program(self, job: JobContext) -> Ending:
        """Lead the run."""
        from medveil.connect.coordinator_program import run_coordinator

        _settle()
        return run_coordinator(job)


def _settle() -> None:
    """Hide what is imported by now from the garbage collector.

    It is then quick enough to be called every so many rounds; left to itself, it lets a coordinator's garbage lie for
    thousands of steps (18 MB in a thousand).
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # what is hidden counts until everything was looked at once more
