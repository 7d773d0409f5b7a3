"""A job message by message in one thread: who is cut off, or dies, after which message is the test's to say."""

import copy
import gc
from collections import deque
from contextlib import contextmanager
from unittest import mock

from network_rig import run_of

from medveil.connect import coordinator_program, leading
from medveil.connect.observing import SiteObserver
from medveil.connect.own import Own
from medveil.connect.site_program import _sentence
from medveil.connect.site_run import SiteRun
from medveil.errors import MedveilError
from medveil.federation.messages import Decline, decode, encode
from medveil.federation.postman import Arrival
from medveil.study.arms import build_model
from medveil.study.prepare import prepare_own
from medveil.study.privacy import bind_plan
from medveil.training.device import be_deterministic, choose_device

LONG_AGO = 1e6


class DiedError(BaseException):
    """The coordinator's process is gone; nothing in it may catch this."""


class Guests:
    """What the sites of a federation bring, read once."""

    def __init__(self, hospitals):
        self.hospitals = hospitals
        self._read = {}

    def own(self, name, plan):
        if name not in self._read:
            home = self.hospitals.home(name)
            config = home.site()
            prepared = prepare_own(plan, config.source, home.folder, name)
            first = build_model(plan, prepared.input_shape, prepared.num_classes)
            self._read[name] = (bind_plan(plan), prepared, first, config)
        bound, prepared, first, config = self._read[name]
        return Own(name, plan, bound, prepared, copy.deepcopy(first), choose_device("cpu"), config, "0" * 64, 1)

    def run(self, name, run="ab" * 16, allow=lambda _sites: None):
        """A site that agreed, in a job that has not begun."""
        be_deterministic(choose_device("cpu"))
        own, home = self.own(name, self.hospitals.plan), self.hospitals.home(name)
        observer = SiteObserver(home.folder, "job")
        return own, SiteRun(own, home, run, permission=Allowed(allow), log=home.audit_log(), observer=observer)


class Allowed:
    """A permission that asks the test."""

    def __init__(self, allow):
        self._allow = allow

    def check(self, _own, sites):
        self._allow(sites)

    def check_again(self, _own, sites):
        self._allow(sites)

    def cap(self, *_arguments):
        pass


class Ward:
    """The sites of one job, in place of a network and of the coordinator's postman.

    Args:
        guests: of the federation.
        names: sites of this job.
        cut: by number of a message, sites that nothing reaches from then on and that are not heard of any more.
        decline: by number of a message, sites that stop of themselves and say so.
        restart: by number of a message, sites whose process dies; they stay away for this job.
        die: number of the message at which the coordinator dies.
    """

    def __init__(self, guests, names, run, *, cut=None, decline=None, die=None, tap=None):
        self.guests, self.names = guests, tuple(names)
        self.cut, self.decline, self.die = dict(cut or {}), dict(decline or {}), die
        self.tap = tap or (lambda _site, data: data)
        self.gone, self.errors, self.runs = set(), {}, {}
        self.to_coordinator, self.to_sites = deque(), deque()
        self.count = self.idle = 0
        self.phases = []
        self.dead = False
        for name in self.names:
            own, self.runs[name] = guests.run(name, run)
            self.to_coordinator.append((name, own.ready()))

    def next(self, _timeout):
        if self.die is not None and self.count >= self.die:
            self.dead = True
            raise DiedError
        self.gone |= set(self.cut.pop(self.count, ()))
        for name in self.decline.pop(self.count, ()):
            self._leave(name, encode(Decline(reason="The site was asked to stop", final=False)))
        while self.to_coordinator or self.to_sites:
            if self.to_coordinator:
                name, data = self.to_coordinator.popleft()
                if name in self.gone:
                    continue
                self._note(name, "from", data)
                return Arrival(name, self.tap(name, data))
            name, data = self.to_sites.popleft()
            if name in self.gone or self.runs[name].finished:
                continue
            self._note(name, "to", data)
            self._deliver(name, data)
            return None
        self.idle += 1
        assert self.idle < 2000, "the run stands still"
        return None

    def _note(self, name, direction, data):
        self.count += 1
        self.idle = 0
        self.phases.append((self.count, direction, name, type(decode(data)[0]).__name__))

    def _deliver(self, name, data):
        try:
            answers = self.runs[name].receive(data)
        except MedveilError as error:
            self.errors[name] = error
            self._leave(name, encode(Decline(reason=_sentence(error, None), final=True)))
            return
        self.to_coordinator.extend((name, answer) for answer in answers)

    def _leave(self, name, last_words):
        self.to_coordinator.append((name, last_words))
        self.runs[name].finished = True

    def send(self, name, data):
        if not self.dead:
            self.to_sites.append((name, data))

    def silent_s(self, name):
        return LONG_AGO if name in self.gone else 0.0

    def too_long(self, _name):
        return None

    def bytes_carried(self, _name):
        return 0, 0

    def flush(self, _timeout, _peers=None):
        while not self.dead and self.to_sites:
            name, data = self.to_sites.popleft()
            if name not in self.gone and not self.runs[name].finished:
                self._note(name, "to", data)
                self._deliver(name, data)
        return True

    def close(self):
        """All processes of the job end."""
        for run in self.runs.values():
            run.close()
            if run._account is not None:
                run._account._ledger.close()
        self.runs.clear()
        gc.collect(0)


def lead(guests, job_id, *, names=None, first=None, patience=None, **options):
    """One job; returns (ending, ward). The ending is "died" where the coordinator did."""
    hospitals = guests.hospitals
    hospitals.note_job(job_id, first, patience)
    names = hospitals.names if names is None else names
    ward = Ward(guests, names, run_of(first or job_id), **options)
    with _in_one_thread(ward):
        try:
            ending = coordinator_program.run_coordinator(
                hospitals.context(job_id, "server", names=names, channel=ward, first=first)
            )
        except DiedError:
            ending = "died"
        finally:
            ward.close()
    return ending, ward


@contextmanager
def _in_one_thread(ward):
    with (
        mock.patch.object(coordinator_program, "Postman", return_value=ward),
        mock.patch.object(leading, "Postman", return_value=ward),
    ):
        yield
