"""The classes that a job may name: they run medveil's own programs and take nothing from the job but its plan."""

from medveil.federation.engine.context import Ending, JobContext
from medveil.federation.engine.parts import EngineController, EngineExecutor


class SiteExecutor(EngineExecutor):
    """A site's part of a job."""

    def program(self, job: JobContext) -> None:
        """Take part in the run."""
        from medveil.connect.site_program import run_site

        run_site(job)


class CoordinatorController(EngineController):
    """The server's part of a job."""

    def program(self, job: JobContext) -> Ending:
        """Lead the run."""
        from medveil.connect.coordinator_program import run_coordinator

        return run_coordinator(job)
