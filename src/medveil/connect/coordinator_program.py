"""What the server does with a job: lead the sites through the plan, from the last committed round on."""

from contextlib import suppress

from medveil.connect.home import Home, link_session
from medveil.connect.jobs import plan_of
from medveil.connect.leading import Leader, ReturnedError, plan_facts
from medveil.connect.server_run import Events, leave_result, part
from medveil.errors import ConfigError, InterruptedRunError, MedveilError, TooFewSitesError
from medveil.federation.engine.context import Ending, JobContext
from medveil.federation.postman import Postman
from medveil.study.folder import RunFolder
from medveil.study.manifest import verify_manifest

_DISK_S = 60.0
_LONGEST_WAIT_S = 120.0
_MOST_FRUITLESS = 50
_OVER = "The run is over; once the cause is mended, submit the plan again. "


def run_coordinator(job: JobContext) -> Ending:
    """Lead one job.

    Returns:
        "done": the run folder holds its record. "again": the run goes on in a further job, once the sites are there.
        "failed": it cannot; ``progress.json`` in the run folder says why.
    """
    home = Home(job.home)
    plan = plan_of(job.app)
    folder = RunFolder(home.run_folder(plan.name, job.nonce))
    with folder.claim():
        if folder.manifest.exists():
            return _finished_before(job, folder)
        events = Events(folder, job.sites)
        try:
            leader = Leader(job, home, plan, folder, events)
        except ConfigError as error:
            folder.bind_plan(plan_facts(plan))
            events.note(str(error))
            job.abort.wait(_DISK_S)  # whoever runs the server can correct its settings
            return "again"
        return _led(job, leader)


def _led(job: JobContext, leader: Leader) -> Ending:
    """How it ended."""
    farewell = "the server met an unexpected error; its own log says which"
    try:
        leader.lead()
        farewell = "the run is done"
    except ReturnedError as error:
        farewell = error.what
        _note(leader, error.what)
        return "again"
    except TooFewSitesError as error:
        farewell = _reason(error)
        if leader.is_final or leader.fruitless >= _MOST_FRUITLESS:
            _note(leader, f"{_OVER}{error}")
            return "failed"
        _note(leader, str(error))
        leader.wait(min(_LONGEST_WAIT_S, 2.0**leader.fruitless))
        return "again"
    except MedveilError as error:
        farewell = _reason(error)
        _note(leader, str(error) if job.abort.is_set() else f"{_OVER}{error}")
        return "again" if job.abort.is_set() else "failed"
    except OSError as error:
        farewell = "the server cannot use a file of its own; the run goes on by itself"
        _note(leader, f"A file at the server cannot be used: {error.strerror}. Make room: the run goes on")
        leader.wait(_DISK_S)
        return "again"
    finally:
        leader.close(farewell)
    return "done"


def _note(leader: Leader, text: str) -> None:
    """Note why a job ends; what becomes of the run does not hang on room for the note."""
    with suppress(OSError):
        leader.events.note(text)


def _reason(error: MedveilError) -> str:
    """Why the job ends, for every site: without what another site said of itself, or what the submitter may do."""
    if error.remedy is None or isinstance(error, InterruptedRunError):
        return error.what
    return f"{error.what}: {error.remedy}"


def _finished_before(job: JobContext, folder: RunFolder) -> Ending:
    """The run was finished by a job that could not say so any more: nobody is asked for anything again."""
    verify_manifest(folder.path)
    postman = Postman(job.channel, {site: link_session(job.job_id, site) for site in job.sites})
    part(postman, job.sites, "the run is finished")
    leave_result(job, folder)
    return "done"
