"""What the server does with a job: lead the sites through the plan, from the last committed round on."""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import torch
from torch import nn

from medveil import __version__
from medveil.accounting.events import Event, Repeated
from medveil.connect.gather import Gather
from medveil.connect.home import Home, link_session
from medveil.connect.jobs import RESULT, check_networked, plan_of
from medveil.connect.network_record import write_run
from medveil.connect.server_run import Events, RunMemory, note_returned, returned_sites
from medveil.connect.summing import Sums
from medveil.dp.plan import PrivacyPlan
from medveil.errors import ConfigError, FederationError, MedveilError, ProtocolError, TooFewSitesError
from medveil.federation.coordinator import least_sites
from medveil.federation.engine.context import Ending, JobContext
from medveil.federation.engine.status import note_spared, read_status
from medveil.federation.messages import Farewell, Open, Ready, Settled, encode
from medveil.federation.postman import Postman
from medveil.federation.remote import Patience, Remote
from medveil.rng import Seeds
from medveil.study.arms import Journal, build_model, privacy_random
from medveil.study.federated import (
    build_stages,
    check_sites,
    earlier_traffic,
    lead,
    model_sizes,
    outcome_of,
)
from medveil.study.folder import MetricsLog, RunFolder, write_text
from medveil.study.manifest import verify_manifest
from medveil.study.parties import steps_per_round
from medveil.study.plan import Plan
from medveil.study.privacy import bind_plan
from medveil.study.record import known_sites
from medveil.study.secure import ProtocolClock, secure_groups, secure_server
from medveil.training.device import be_deterministic, one_thread

ENGINE = "nvflare"
_FAREWELL_S = 10.0
_SETTLING_S = 20.0
_DISK_S = 60.0
_LONGEST_WAIT_S = 120.0
_MOST_FRUITLESS = 50


class _ReturnedError(FederationError):
    """A site that the run went on without is there again: the run goes on in a new job, with it."""


@dataclass(frozen=True, eq=False)
class ServerDesk:
    """What the journal of a run needs; a :class:`medveil.study.arms.Desk`.

    Args:
        plan: of the run.
        folder: of the run.
        log: metrics of every round.
        progress: where the run stands.
    """

    plan: Plan
    folder: RunFolder
    log: MetricsLog
    progress: Events


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
        return _led(job, Leader(job, home, plan, folder, Events(folder, job.sites)))


def _led(job: JobContext, leader: "Leader") -> Ending:
    """How it ended."""
    note = leader.events.note
    try:
        leader.lead()
    except _ReturnedError as error:
        note(error.what)
        return "again"
    except TooFewSitesError as error:
        note(str(error))
        if leader.is_final or leader.fruitless >= _MOST_FRUITLESS:
            return "failed"
        leader.wait(min(_LONGEST_WAIT_S, 2.0**leader.fruitless))
        return "again"
    except MedveilError as error:
        note(str(error))
        return "again" if job.abort.is_set() else "failed"
    except OSError as error:
        with suppress(OSError):
            note(f"A file at the server cannot be used: {error.strerror}. Make room: the run goes on")
        leader.wait(_DISK_S)
        return "again"
    finally:
        leader.close()
    return "done"


def _finished_before(job: JobContext, folder: RunFolder) -> Ending:
    """The run was finished by a job that could not say so any more: nobody is asked for anything again."""
    verify_manifest(folder.path)
    postman = Postman(job.channel, {site: link_session(job.job_id, site) for site in job.sites})
    for site in job.sites:
        postman.send(site, encode(Farewell(reason="the run is finished")))
    postman.flush(_FAREWELL_S)
    postman.close()
    leave_result(job, folder)
    return "done"


def leave_result(job: JobContext, folder: RunFolder) -> None:
    """Leave the run where the engine hands a job's files to its submitter."""
    result = job.app / RESULT
    shutil.rmtree(result, ignore_errors=True)
    shutil.copytree(folder.path, result, ignore=shutil.ignore_patterns("state", "*.tmp"))


class Leader:
    """One job at the server.

    Args:
        job: of the engine.
        home: the server's own folder.
        plan: of the run.
        folder: of the run.
        events: where what happens is noted.
    """

    def __init__(self, job: JobContext, home: Home, plan: Plan, folder: RunFolder, events: Events) -> None:
        self._job, self._home, self._plan, self._folder, self.events = job, home, plan, folder, events
        self._begun = time.perf_counter()
        sessions = {site: link_session(job.job_id, site) for site in job.sites}
        self._postman = Postman(job.channel, sessions)
        self._remote: Remote | None = None
        self._spared: set[str] | None = None
        self._memory: RunMemory | None = None

    @property
    def is_final(self) -> bool:
        """Whether a site said that it will not take part, whatever is tried."""
        return self._remote is not None and any(self._remote.left.values())

    @property
    def fruitless(self) -> int:
        """Jobs in a row, this one included, that began without a round more than the one before."""
        return 0 if self._memory is None else self._memory.fruitless

    def wait(self, seconds: float) -> None:
        """Wait before the run goes on, so that a fault that stays does not make a loop."""
        self._job.abort.wait(seconds)

    def close(self) -> None:
        """Say farewell to whoever is there, and end the links."""
        farewell = encode(Farewell(reason="the server's job ends"))
        gone = () if self._remote is None else self._remote.left  # they were told
        there = [site for site in self._job.sites if site not in gone]
        for site in there:
            self._postman.send(site, farewell)
        self._postman.flush(_FAREWELL_S, there)
        self._postman.close()

    def lead(self) -> None:
        """The whole run, or what is left of it.

        Raises:
            MedveilError: it cannot go on in this job.
        """
        plan, folder = self._plan, self._folder
        check_networked(plan)
        be_deterministic(torch.device("cpu"))
        bound = bind_plan(plan)
        folder.bind_plan({"plan_hash": plan.digest(), "plan": plan.model_dump(mode="json")})
        write_text(folder.state / "run-id", self._job.nonce)
        desk = ServerDesk(plan, folder, MetricsLog(folder.metrics), self.events)
        journal = Journal(desk, "federated")
        done = journal.snapshot.round if journal.snapshot else 0
        first_job = read_status(self._job.home, self._job.job_id).of
        memory = self._memory = RunMemory(folder, self._job.sites, first_job=first_job, rounds_done=done)
        roster = self._known(memory.sites)
        check_sites(bound, memory.sites)
        lost = dict(journal.snapshot.facts["lost"]) if journal.snapshot else {}
        back = lost.keys() & set(self._job.sites)  # the engine gives a job to sites that are there
        for site in back:
            lost.pop(site)
        here = [site for site in self._job.sites if site in memory.sites and site not in lost]
        remote = self._remote = Remote(
            ENGINE,
            self._postman,
            here,
            patience=self._patience(),
            watch=self.events.happened,
            stopped=self._job.abort.is_set,
            gone=lambda: returned_sites(self._home.returned),  # who is there anew is not there as before
            traffic=earlier_traffic(journal.snapshot),
        )
        facts = self._gather(remote, here, memory.sites)
        here = [site for site in here if site not in remote.left]
        first = self._network(facts)
        groups = secure_groups(
            plan,
            bound,
            roster,
            sizes=model_sizes(first),
            session=f"run {folder.run_id()} attempt {memory.attempt}",
        )
        secure = secure_server(plan, groups)
        clock = ProtocolClock(journal.snapshot.facts["protocol"] if journal.snapshot else {})
        opening = Open(
            run=folder.run_id(),
            attempt=memory.attempt,
            rounds_done=done,
            sites=list(memory.sites),
            lost=sorted(lost),
        )
        remote.tell(encode(opening), here)
        pipeline = build_stages(plan, bound, privacy_random(plan, bound, "server"))
        coordinator = lead(
            desk,
            journal,
            remote,
            first,
            names=memory.sites,
            pipeline=pipeline,
            secure=secure,
            clock=clock,
            returned=back,
            absent=[site for site in memory.sites if site not in here],
            after_round=lambda _round: self._look_for_returned(remote, {*memory.sites} - {*here}),
        )
        training_seconds = journal.seconds
        most = None if bound is None else bound.steps + steps_per_round(plan) * memory.attempt
        unsettled = most if plan.privacy.secure_aggregation is None or bound is None else bound.steps
        settled = Gather(
            Settled, [site for site in coordinator.alive if site in here], least=0, check=partial(_check_settled, most)
        )
        remote.lead(settled)
        for site, told in settled.gathered.items():
            clock.add(site, told.protocol_seconds)
        outcome = outcome_of(
            plan,
            journal,
            coordinator,
            remote,
            secure=secure,
            clock=clock,
            **_settled(bound, settled.gathered, memory.sites, unsettled),
        )
        self.events.note("Summing the sites' test scores")
        sums = Sums(plan, facts, remote, memory.sites, roster, outcome, session=_session(opening))
        write_run(
            plan,
            folder,
            bound=bound,
            facts=facts,
            first=first,
            outcome=outcome,
            sums=sums.read(),
            pipeline=pipeline,
            events=self.events.told(),
            sites=memory.sites,
            seconds={"federated": round(training_seconds, 3)},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            transport=ENGINE,
        )
        leave_result(self._job, self._folder)
        self.events.note("done")

    def _known(self, sites: tuple[str, ...]) -> dict[str, bytes]:
        """The sites' identity keys.

        Raises:
            ConfigError: a site that is not in the roster, or not as many as the plan counts on.
        """
        roster = self._home.roster()
        strangers = [site for site in sites if site not in roster]
        planned = known_sites(self._plan)
        if strangers or (planned is not None and planned != len(sites)):
            raise ConfigError(
                "The job's sites are not those that the plan counts on",
                got=f"{len(sites)} sites, {len(strangers)} of them unknown to the server",
                expected=f"{planned} sites of the roster" if planned is not None else "sites of the roster",
                remedy="set data.partition in the plan to the number of sites, or submit to other sites",
            )
        return {site: roster[site] for site in sites}

    def _patience(self) -> Patience:
        path = self._home.folder / "server.json"
        if not path.exists():
            return Patience()
        return Patience(**json.loads(path.read_text(encoding="utf-8")))

    def _gather(self, remote: Remote, here: list[str], sites: Sequence[str]) -> Ready:
        """What the sites run and hold; all the same, or the run cannot begin."""
        self.events.note("Waiting for the sites to agree to the plan")
        least = self._least(sites)
        first: list[Ready] = []

        def check(site: str, ready: Ready) -> None:
            self._check_ready(site, ready, first)
            self.events.joined(site)

        gather = Gather(Ready, here, least=max(1, least), check=check)
        remote.lead(gather)
        chosen = self._plan.federation.select == "best" or self._plan.federation.early_stopping is not None
        if chosen and not any(ready.validates for ready in gather.gathered.values()):
            raise ConfigError(
                "The plan selects or stops by validation scores, and no site has validation data",
                remedy='set federation.select = "last" without early stopping',
            )
        return first[0]

    def _least(self, sites: Sequence[str]) -> int:
        """Fewest sites to begin with: as many as the training itself cannot spare."""
        federation, sums = self._plan.federation, self._plan.privacy.secure_aggregation
        if sums is None:
            return least_sites(federation, len(sites))
        groups = sums.deal(list(sites), Seeds(self._plan.seed))
        return max(federation.min_sites, sum(len(group) - sums.dropouts_of(len(group)) for group in groups))

    def _check_ready(self, site: str, ready: Ready, first: list[Ready]) -> None:
        """Refuse a site that follows another plan or version, or whose images are of another kind.

        Raises:
            ProtocolError: as said; the run goes on without the site where it can.
        """
        ours = {"plan": self._plan.digest(), "version": __version__, "name": site}
        theirs = {"plan": ready.plan_hash, "version": ready.version, "name": ready.site}
        different = [name for name in ours if ours[name] != theirs[name]]
        if different:
            raise ProtocolError(
                f"The site has another {' and '.join(different)} than the server",
                got=", ".join(theirs[name][:20] for name in different),
                expected=", ".join(ours[name][:20] for name in different),
                remedy="install the same version of medveil everywhere",
            )
        if first and (ready.input_shape, ready.class_names) != (first[0].input_shape, first[0].class_names):
            raise ProtocolError(
                "The site's images or classes are not those of the other sites",
                got=f"shape {ready.input_shape}, {len(ready.class_names)} classes",
                expected=f"shape {first[0].input_shape}, {len(first[0].class_names)} classes",
                remedy="set data.preprocess in the plan so that all images have one shape, and name the same classes",
            )
        first.append(ready)

    def _network(self, facts: Ready) -> nn.Module:
        one_thread()
        return build_model(self._plan, tuple(facts.input_shape), len(facts.class_names))

    def _look_for_returned(self, remote: Remote, absent: set[str]) -> None:
        """After a round is committed: take up sites that came back, in a new job.

        Raises:
            _ReturnedError: there are some, and this job is not a new one.
        """
        gone = absent | {*remote.left}
        if gone != self._spared:  # a round was committed without them
            self._spared = gone
            note_spared(self._job.home, read_status(self._job.home, self._job.job_id).of, sorted(gone))
        if self._job.abort.is_set() or time.perf_counter() - self._begun < _SETTLING_S:
            return
        for_good = {site for site, final in remote.left.items() if final}
        started_anew = returned_sites(self._home.returned) & (gone - for_good)
        there = started_anew | {*remote.returned}
        for site in there - started_anew:
            note_returned(self._home.returned, site)
        if there:
            raise _ReturnedError(f"The run goes on in a new job, with {', '.join(sorted(there))} again")


def _check_settled(most: int | None, site: str, told: Settled) -> None:
    """Refuse a number of steps that no honest site can have charged.

    Raises:
        ProtocolError: more than the plan and its repetitions have, or any where nothing is promised.
    """
    del site
    if (told.steps is None) != (most is None) or (told.steps or 0) > (most or 0):
        raise ProtocolError("A site charged more steps than the run can have asked for", expected=f"at most {most}")


def _settled(
    bound: PrivacyPlan | None, told: Mapping[str, Settled], sites: Sequence[str], most: int | None
) -> dict[str, Any]:
    """What the sites' ledgers were charged and say; a site that is not there to tell counts with the most it may."""
    if bound is None:
        return {"charged": None, "ledgers": None}
    steps = {site: told[site].steps if site in told else most for site in sites}
    charged: dict[str, Event] = {
        site: Repeated(event=bound.step_event(), count=count) for site, count in steps.items() if count
    }
    ledgers = {site: one.ledger.model_dump() for site, one in told.items() if one.ledger is not None}
    return {"charged": charged or None, "ledgers": ledgers or None}


def _session(opening: Open) -> str:
    return f"run {opening.run} attempt {opening.attempt}"
