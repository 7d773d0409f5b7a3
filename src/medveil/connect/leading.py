"""One job at the server: the sites are led from the last committed round on, and what they sum is written down."""

import gc
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import torch
from torch import nn

from medveil.accounting.events import Event, Repeated
from medveil.connect.gather import Gather
from medveil.connect.home import Home, link_session
from medveil.connect.jobs import check_networked
from medveil.connect.network_record import write_run
from medveil.connect.readying import gather_ready
from medveil.connect.server_run import Events, RunMemory, leave_result, note_returned, part, returned_sites
from medveil.connect.summing import Sums
from medveil.dp.plan import PrivacyPlan
from medveil.errors import ConfigError, FederationError, ProtocolError
from medveil.federation.engine.context import JobContext
from medveil.federation.engine.status import note_spared, read_status
from medveil.federation.messages import Open, Ready, Settled, Stop, encode
from medveil.federation.postman import Postman
from medveil.federation.remote import Remote
from medveil.federation.secure.decided import Decided
from medveil.study.arms import Journal, build_model, privacy_random
from medveil.study.federated import (
    build_stages,
    check_sites,
    earlier_traffic,
    lead,
    lost_sites,
    model_sizes,
    outcome_of,
)
from medveil.study.folder import MetricsLog, RunFolder, write_text
from medveil.study.parties import steps_per_round
from medveil.study.plan import Plan
from medveil.study.privacy import bind_plan
from medveil.study.record import known_sites
from medveil.study.secure import ProtocolClock, secure_groups, secure_server
from medveil.training.device import be_deterministic, one_thread

ENGINE = "nvflare"
_SETTLING_S = 20.0
_COLLECT_EVERY = 100


class ReturnedError(FederationError):
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


class Leader:
    """One job at the server.

    Args:
        job: of the engine.
        home: the server's own folder.
        plan: of the run.
        folder: of the run.
        events: where what happens is noted.

    Raises:
        ConfigError: the server's own settings are not valid.
    """

    def __init__(self, job: JobContext, home: Home, plan: Plan, folder: RunFolder, events: Events) -> None:
        self._job, self._home, self._plan, self._folder, self.events = job, home, plan, folder, events
        self._begun = time.perf_counter()
        sessions = {site: link_session(job.job_id, site) for site in job.sites}
        settings = home.server()
        self._patience = settings.patience()
        most = settings.max_message_mb << 20
        self._postman = Postman(job.channel, sessions, settings=settings.links(), unread_bytes=most)
        self._remote: Remote | None = None
        self._spared: set[str] | None = None
        self._rounds = 0
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

    def close(self, reason: str) -> None:
        """Say farewell to whoever is there, and why, and end the links."""
        gone = () if self._remote is None else self._remote.left  # they were told
        there = [site for site in self._job.sites if site not in gone]
        try:
            part(self._postman, there, reason)
        finally:
            if self._memory is not None:
                with suppress(OSError):  # a full disk: the next job says that this one was cut off
                    self._memory.ended()

    def lead(self) -> None:
        """The whole run, or what is left of it.

        Raises:
            MedveilError: it cannot go on in this job.
        """
        plan, folder = self._plan, self._folder
        check_networked(plan)
        be_deterministic(torch.device("cpu"))
        bound = bind_plan(plan)
        folder.bind_plan(plan_facts(plan))
        write_text(folder.state / "run-id", self._job.nonce)
        desk = ServerDesk(plan, folder, MetricsLog(folder.metrics), self.events)
        journal = Journal(desk, "federated")
        done = journal.snapshot.round if journal.snapshot else 0
        first_job = read_status(self._job.home, self._job.job_id).of
        memory = RunMemory(folder, self._job.sites, first_job=first_job, rounds_done=done)
        if memory.cut_off:
            self.events.cut_off(done)
        self._memory = memory  # whose end is noted from now on
        roster = self._known(memory.sites)
        check_sites(bound, memory.sites)
        lost = lost_sites(journal)
        back = lost.keys() & set(self._job.sites)  # the engine gives a job to sites that are there
        for site in back:
            lost.pop(site)
        here = [site for site in self._job.sites if site in memory.sites and site not in lost]
        remote = self._remote = Remote(
            ENGINE,
            self._postman,
            here,
            patience=self._patience,
            watch=self.events.happened,
            stopped=self._job.abort.is_set,
            gone=lambda: returned_sites(self._home.returned),  # who is there anew is not there as before
            traffic=earlier_traffic(journal.snapshot),
        )
        facts = gather_ready(plan, remote, here, memory.sites, self.events)
        here = [site for site in here if site not in remote.left]
        first = self._network(facts)
        groups = secure_groups(
            plan,
            bound,
            roster,
            sizes=model_sizes(first),
            session=f"run {folder.run_id()} attempt {memory.attempt}",
        )
        decided = Decided(folder.decided, watch=self._spare)
        secure = secure_server(plan, groups, decided)
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
            after_round=partial(self._look_for_returned, remote),
        )
        training_seconds = journal.seconds
        most = None if bound is None else bound.steps + steps_per_round(plan) * memory.attempt
        unsettled = most if plan.privacy.secure_aggregation is None or bound is None else bound.steps
        aside = _set_aside(remote, coordinator.lost)
        remote.tell(encode(Stop(reason="all rounds done")), aside)
        asked = [site for site in (*coordinator.alive, *aside) if site in here]
        settled = Gather(Settled, asked, least=0, check=partial(_check_settled, most))
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
        sums = Sums(plan, facts, remote, memory.sites, roster, outcome, session=_session(opening), decided=decided)
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
            ConfigError: a site is not in the server's roster, or there are not as many as the plan counts on.
        """
        roster = self._home.roster()
        strangers = [site for site in sites if site not in roster]
        planned = known_sites(self._plan)
        if strangers:
            raise ConfigError(
                "The server does not know every site of the job",
                got=f"{len(strangers)} of {len(sites)} are not in its roster",
                remedy="give the server the roster.json of its present kit, which provisioning wrote",
            )
        if planned is not None and planned != len(sites):
            raise ConfigError(
                "The job's sites are not those that the plan counts on",
                got=f"{len(sites)} sites",
                expected=f"{planned} sites",
                remedy="set data.partition in the plan to the number of sites, or submit to other sites",
            )
        return {site: roster[site] for site in sites}

    def _network(self, facts: Ready) -> nn.Module:
        one_thread()
        return build_model(self._plan, tuple(facts.input_shape), len(facts.class_names))

    def _spare(self, sites: Collection[str]) -> None:
        """Note that the run goes on without ``sites``, so that a further job does not wait for them."""
        gone = set(sites)
        if gone != self._spared:
            self._spared = gone
            note_spared(self._job.home, read_status(self._job.home, self._job.job_id).of, sorted(gone))

    def _look_for_returned(self, remote: Remote, lost: Collection[str]) -> None:
        """After a round is committed without the ``lost`` sites: take up those that are there, in a new job.

        Raises:
            ReturnedError: there are some, and this job is not a new one.
        """
        gone = {*lost, *remote.left}
        self._spare(gone)
        self._rounds += 1
        if self._rounds % _COLLECT_EVERY == 0:
            gc.collect()  # left alone, what refers to itself lies for thousands of rounds: 18 MB in a thousand
        if self._job.abort.is_set() or time.perf_counter() - self._begun < _SETTLING_S:
            return
        for_good = {site for site, final in remote.left.items() if final}
        started_anew = returned_sites(self._home.returned) & (gone - for_good)
        there = started_anew | {*remote.returned} | _set_aside(remote, lost)
        for site in there - started_anew:
            note_returned(self._home.returned, site)
        if there:
            raise ReturnedError(f"The run goes on in a new job, with {', '.join(sorted(there))} again")


def plan_facts(plan: Plan) -> dict[str, Any]:
    """What ties a run folder to its plan."""
    return {"plan_hash": plan.digest(), "plan": plan.model_dump(mode="json")}


def _set_aside(remote: Remote, lost: Collection[str]) -> set[str]:
    """Sites that are there, and that a round was opened without because it was to be before an interruption."""
    return {site for site in remote.sites if site in lost and site not in remote.left}


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
