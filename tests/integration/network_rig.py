"""Coordinator and sites as over a network, in threads of this process: an unreliable channel in place of the engine."""

import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from medveil.connect.coordinator_program import run_coordinator
from medveil.connect.jobs import plan_bytes
from medveil.connect.site_program import run_site
from medveil.federation.engine.context import JobContext, Submitter
from medveil.secagg.identity import IdentityKey
from medveil.study.deal import deal
from medveil.study.plan import Plan

PERMISSIVE = """
tasks = ["classification", "segmentation"]
datasets = ["pneumonia-28", "phantom"]
max_rounds = 1000
max_parameters = 10000000
deidentified = true

[models]
architectures = "any"

[[submitters]]
role = "lead"

[privacy]
modes = ["none", "distributed", "local", "site"]
units = ["patient", "image", "site"]
delta = 1e-5
relation = "add-remove"
epsilon = 10.0
colluding = 0
min_sites = 2
min_included = 2
debug_randomness = true
held_out = ["public", "private"]
one_image_per_patient = true
secure_aggregation = false

[approval]
rule = "policy"
"""


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

    def __init__(self, root: Path, plan: Plan, *, policy: str = PERMISSIVE):
        self.root, self.plan = root, plan
        shares = deal(plan, root / "data")
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
        (self.app / "plan.json").write_bytes(plan_bytes(plan))

    def kit(self, name):
        return self.root / "kits" / name

    def job(self, job_id, *, wire=None, only=None, during=None, first=None, patience=None, timeout=240.0):
        """Run one job; returns (ending, {site: error})."""
        wire = wire or Wire()
        names = self.names if only is None else only
        jobs = self.kit("server") / "medveil" / "jobs"
        jobs.mkdir(exist_ok=True)
        (jobs / f"{job_id}.json").write_text(json.dumps({"status": "running", "of": first or job_id, "attempt": 1}))
        if patience:
            (self.kit("server") / "medveil" / "server.json").write_text(json.dumps(patience))
        self.aborts = {name: threading.Event() for name in ("server", *names)}
        errors: dict[str, Exception] = {}
        ending: list[str] = []

        def context(name):
            return JobContext(
                job_id=job_id,
                me=name,
                sites=tuple(names) if name == "server" else (),
                app=self.app,
                home=self.kit(name),
                submitter=Submitter("lead@hospital.org", "hospital_a", "lead"),
                abort=self.aborts[name],
                channel=wire.end(name),
            )

        def site(name):
            try:
                run_site(context(name))
            except Exception as error:
                errors[name] = error

        threads = [threading.Thread(target=site, args=(name,), daemon=True) for name in names]
        server = threading.Thread(target=lambda: ending.append(run_coordinator(context("server"))), daemon=True)
        # torch.fx patches nn.Module while it traces, which threads that compute at the same time do not survive.
        traced = mock.patch("medveil.connect.site_program.architecture_hash", lambda _model, _shape: "0" * 64)
        traced.start()
        for thread in (*threads, server):
            thread.start()
        if during is not None:
            during(self, wire)
        server.join(timeout)
        assert not server.is_alive(), "the coordinator did not end"
        traced.stop()
        for name, thread in zip(names, threads, strict=True):
            self.aborts[name].set()
            thread.join(30)
            assert not thread.is_alive(), f"{name} did not end"
        return (ending[0] if ending else None), errors

    def record(self):
        (path,) = (self.kit("server") / "medveil" / "runs").glob("*/record.json")
        return json.loads(path.read_text())

    def run_folder(self):
        (path,) = (self.kit("server") / "medveil" / "runs").iterdir()
        return path

    def wait_for_round(self, number, timeout=120.0):
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            for path in (self.kit("server") / "medveil" / "runs").glob("*/progress.json"):
                if json.loads(path.read_text())["round"] >= number:
                    return
            time.sleep(0.05)
        raise AssertionError(f"round {number} was not reached")
