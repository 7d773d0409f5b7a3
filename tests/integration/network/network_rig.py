"""Coordinator and sites as over a network, in threads of this process: an unreliable channel in place of the engine."""

import hashlib
import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from network_plans import POLICY

from medveil.accounting.events import flatten
from medveil.accounting.ledger import Ledger
from medveil.connect.audit_verify import verify
from medveil.connect.coordinator_program import run_coordinator
from medveil.connect.home import Home
from medveil.connect.jobs import plan_bytes
from medveil.connect.site_program import run_site
from medveil.federation.engine.context import JobContext, Submitter
from medveil.federation.link import LinkSettings
from medveil.secagg.identity import IdentityKey
from medveil.study.deal import deal

HURRIED = LinkSettings(resend_after_s=0.15, resend_at_most_s=0.6, heartbeat_s=0.3)
LEAD = Submitter("lead@hospital.org", "hospital_a", "lead")


@dataclass
class Wire:
    """All frames of one job; loses, repeats and delays them."""

    loss: float = 0.0
    seed: int = 0
    cut: set[str] = field(default_factory=set)

    def __post_init__(self):
        self.handlers: dict[str, Callable[[str, bytes], None]] = {}
        self.random = random.Random(self.seed)
        self.lock = threading.Lock()
        self.sniffed: list[tuple[str, str, bytes]] = []

    def end(self, me):
        return End(self, me)

    def carry(self, sender, receiver, frame):
        with self.lock:
            self.sniffed.append((sender, receiver, frame))
            lost = self.random.random() < self.loss or sender in self.cut or receiver in self.cut
            twice = self.random.random() < self.loss
        if lost:
            return
        for _ in range(2 if twice else 1):
            threading.Thread(target=self._deliver, args=(sender, receiver, frame), daemon=True).start()

    def _deliver(self, sender, receiver, frame):
        handler = self.handlers.get(receiver)
        if handler is not None:
            handler(sender, frame)


@dataclass
class End:
    wire: Wire
    me: str

    def post(self, peer, frame):
        self.wire.carry(self.me, peer, bytes(frame))

    def listen(self, handler):
        self.wire.handlers[self.me] = handler


class Hospitals:
    """Kits without certificates: everything that the programs read."""

    def __init__(self, root: Path, plan, shares=None, *, policy: str = POLICY):
        self.root, self.plan = root, plan
        shares = deal(plan, root / "data") if shares is None else shares
        self.names = sorted(shares)
        keys = {name: IdentityKey.generate() for name in self.names}
        roster = json.dumps({"sites": {name: key.public.hex() for name, key in keys.items()}})
        for name in ("server", *self.names):
            folder = self.kit(name) / "medveil"
            folder.mkdir(parents=True)
            (folder / "roster.json").write_text(roster)
            if name == "server":
                continue
            keys[name].save(folder / "identity.key")
            (folder / "policy.toml").write_text(policy)
            (folder / "site.toml").write_text(
                f'deidentified = true\n[source]\nkind = "share"\npath = "{shares[name].path}"\n'
                f"names_patients = {str(shares[name].names_patients).lower()}\n"
            )
        self.app = root / "app"
        self.app.mkdir()
        self.submit(plan)

    def submit(self, plan):
        """Put another plan into the jobs to come."""
        self.plan = plan
        (self.app / "plan.json").write_bytes(plan_bytes(plan))

    def kit(self, name):
        return self.root / "kits" / name

    def home(self, name):
        return Home(self.kit(name))

    def context(self, job_id, name, *, names, channel, abort=None, first=None):
        return JobContext(
            job_id=job_id,
            me=name,
            sites=tuple(names) if name == "server" else (),
            app=self.app,
            home=self.kit(name),
            submitter=LEAD,
            abort=abort or threading.Event(),
            channel=channel,
            nonce=run_of(first or job_id),
        )

    def note_job(self, job_id, first=None, patience=None):
        """What the engine's controller writes, and the server's own settings."""
        server = self.kit("server") / "medveil"
        (server / "jobs").mkdir(exist_ok=True)
        of = {"status": "running", "of": first or job_id, "attempt": 1}
        (server / "jobs" / f"{job_id}.json").write_text(json.dumps(of))
        if patience:
            (server / "server.json").write_text(json.dumps(patience))

    def job(
        self, job_id, *, wire=None, only=None, during=None, first=None, patience=None, timeout=120.0, farewell_s=0.5
    ):
        """Run one job in threads; returns (ending, {site: error})."""
        wire = wire or Wire()
        names = self.names if only is None else only
        self.note_job(job_id, first, patience)
        self.aborts = {name: threading.Event() for name in ("server", *names)}
        errors: dict[str, Exception] = {}
        ending: list[str] = []

        def context(name):
            return self.context(job_id, name, names=names, channel=wire.end(name), abort=self.aborts[name], first=first)

        def site(name):
            try:
                run_site(context(name))
            except Exception as error:  # noqa: BLE001 - whatever it is, the test sees it
                errors[name] = error

        threads = [threading.Thread(target=site, args=(name,), daemon=True) for name in names]
        server = threading.Thread(target=lambda: ending.append(run_coordinator(context("server"))), daemon=True)
        # torch.fx patches nn.Module while it traces, which threads that compute at the same time do not survive.
        hashed = mock.patch("medveil.connect.site_program.architecture_hash", return_value="0" * 64)
        # Nobody is there to answer the last farewell where a site is cut off.
        farewells = [
            mock.patch(f"medveil.connect.{module}._FAREWELL_S", farewell_s) for module in ("server_run", "site_program")
        ]
        links = [mock.patch(f"medveil.connect.{module}.LINKS", HURRIED) for module in ("server_settings", "home")]
        with hashed, links[0], links[1], farewells[0], farewells[1]:
            server.start()
            while "server" not in wire.handlers and server.is_alive():  # who declines at once is to be heard
                time.sleep(0.01)
            for thread in threads:
                thread.start()
            if during is not None:
                during(self, wire)
            server.join(timeout)
            assert not server.is_alive(), "the coordinator did not end"
            for name, thread in zip(names, threads, strict=True):
                self.aborts[name].set()
                thread.join(30)
                assert not thread.is_alive(), f"{name} did not end"
        return (ending[0] if ending else None), errors

    def record(self):
        return json.loads((self.run_folder() / "record.json").read_text())

    def run_folder(self):
        (path,) = (self.kit("server") / "medveil" / "runs").iterdir()
        return path

    def progress(self):
        return json.loads((self.run_folder() / "progress.json").read_text())

    def weights(self):
        return weights_of(self.run_folder())

    def steps(self, name):
        """Private steps that a site's ledger was charged for the run."""
        (path,) = (self.kit(name) / "medveil" / "ledger").glob("*.sqlite")
        run = (self.run_folder() / "state" / "run-id").read_text().strip()
        with Ledger(path, create=False) as ledger:
            event = ledger.charged(run, "phantom-classification")
            return 0 if event is None else sum(count for _, count in flatten(event))

    def log(self, name):
        """A site's audit log, which must verify: its events, oldest first."""
        path = self.kit(name) / "medveil" / "audit.jsonl"
        verify(path, public_key=self.home(name).identity().public)
        return [json.loads(line) for line in path.read_text().splitlines()]

    def events(self, name):
        return [line["event"] for line in self.log(name)]

    def wait_for_round(self, number, timeout=60.0):
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            for path in (self.kit("server") / "medveil" / "runs").glob("*/progress.json"):
                if json.loads(path.read_text())["round"] >= number:
                    return
            time.sleep(0.05)
        raise AssertionError(f"round {number} was not reached")


def run_of(first_job):
    """The name that the submitter signed with the first of a run's jobs."""
    return hashlib.sha256(first_job.encode()).hexdigest()[:32]


def weights_of(folder):
    """Bytes of a run's final weights, without what the file says about the plan."""
    from safetensors.numpy import load_file

    return {name: value.tobytes() for name, value in load_file(folder / "weights.safetensors").items()}
