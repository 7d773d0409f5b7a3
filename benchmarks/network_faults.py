"""A federation over a bad network: does it complete, how long does it take, and is the result the same?

OMP_NUM_THREADS=1 python benchmarks/network_faults.py [CASE ...] [--rounds 25] [--congestion reno|bbr] [--out FOLDER]

Root only. The server, every site and the submitter have a network namespace of their own and real TCP between them;
`peers/netem.c` loses, delays and limits their packets (what a line's figures mean is said there). Latency is of the
round trip: half of it each way, on the sites' lines. Loss is of every packet, each way, on the sites' lines. The rate
is of every line, the server's too, each way. A plug that is pulled is scanner-2's, in the middle of the run.

The plan is of three sites that compute little, so that times are those of the network. Its noise is from seeded
generators, so that the final weights of two runs can be compared bit by bit; real runs draw it from the system.

Exit code 1: a case did not complete, or no site was lost and the weights are others than those of the case they must
equal, or an undisturbed case lost a site. The case to equal is run in the same call, first, also where nobody asks.
"""

import argparse
import hashlib
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from netem import Network, why_not
from safetensors.numpy import load_file

from medveil.connect.job import Federation
from medveil.connect.provision import SERVER_KIT, provision
from medveil.connect.setup import LEAD, describe_federation, equip
from medveil.connect.submitting import submit_plan
from medveil.connect.trial import Kill, Trial, follow, wait_for_sites
from medveil.errors import MedveilError
from medveil.study.deal import deal
from medveil.study.plan import load_plan

PORT = 8170
SITES = ("scanner-1", "scanner-2", "scanner-3")
VICTIM = "scanner-2"
TIMEOUT_S = 900.0
PLAN = (
    "data.source={ kind = 'phantom', subjects = 120, scanners = 3, seed = 1 }",
    "model={ kind = 'scattering', positions = [2, 2], order = 1 }",
    "privacy.delta=1e-2",
    "privacy.dp.sampling={ rate = 0.1, nominal_units = { scanner-1 = 20, scanner-2 = 20, scanner-3 = 20 } }",
    "privacy.dp.noise={ multiplier = 4.0, generator = 'seeded' }",
    "privacy.secure_aggregation.colluding=0",
)
WAITS = ["privacy.secure_aggregation.dropouts=0", "privacy.secure_aggregation.colluding=1"]
LARGE = ["model={ kind = 'resnet20' }"]


def latency(milliseconds):
    """Of the round trip."""
    return lambda network: [network.set(site, delay=milliseconds / 2) for site in SITES]


def loss(probability):
    return lambda network: [network.set(site, loss=probability) for site in SITES]


def rate(megabits):
    """With a queue of 100 ms, as routers have."""
    return lambda network: [
        network.set(name, rate=megabits, queue=max(30, 12.5 * megabits)) for name in (SERVER_KIT, *SITES)
    ]


@dataclass
class Case:
    """One run.

    Args:
        lines: what is done to the network before the processes start.
        overrides: of the plan.
        cut_s: for so long scanner-2 is unplugged in the middle of the run.
        kill: whether scanner-2's processes are killed in the middle, and started again.
        rounds: in place of those given.
        at: the round after which the fault happens; 0: half of them.
        like: the case whose weights these must equal.
    """

    lines: tuple[Callable[[Network], object], ...] = ()
    overrides: tuple[str, ...] = ()
    cut_s: float = 0.0
    kill: bool = False
    rounds: int = 0
    at: int = 0
    like: str = "clean"


ALL = (loss(0.01), latency(200), rate(100))
CASES = {
    "clean": Case(),
    "loss": Case((loss(0.01),)),
    "latency": Case((latency(200),)),
    "rate": Case((rate(100),)),
    "all": Case(ALL),
    "large-clean": Case((), tuple(LARGE), rounds=4, like="large-clean"),
    "large-rate": Case((rate(100),), tuple(LARGE), rounds=4, like="large-clean"),
    "large-all": Case(ALL, tuple(LARGE), rounds=4, like="large-clean"),
    "cut-goes-on": Case((latency(200),), cut_s=60.0, rounds=200, at=40, like=""),
    "waits-clean": Case((), tuple(WAITS), like="waits-clean"),
    "cut-waits": Case((), tuple(WAITS), cut_s=60.0, like="waits-clean"),
    "cut-waits-all": Case(ALL, tuple(WAITS), cut_s=60.0, like="waits-clean"),
    "kill": Case((latency(200),), kill=True, rounds=80, at=10, like=""),
}


class Cut(threading.Thread):
    """Unplugs the victim once the run is at a round."""

    def __init__(self, network, server, number, seconds):
        super().__init__(daemon=True)
        self._network, self._server, self._number, self._seconds = network, server, number, seconds
        self.at = self.mended = 0.0

    def run(self):
        """Wait for the round, then do it."""
        while not any(_round(path) >= self._number for path in self._server.glob("medveil/runs/*/progress.json")):
            time.sleep(0.02)
        self.at = time.time()
        self._network.cut(VICTIM)
        time.sleep(self._seconds)
        self._network.join(VICTIM)
        self.mended = time.time()

    def told(self, text):
        """Note when the victim was killed and started again."""
        if text.startswith("killing"):
            self.at = time.time()
        elif text.startswith("starting"):
            self.mended = time.time()


def _round(path):
    try:
        return json.loads(path.read_text())["round"]
    except (OSError, ValueError):
        return 0


def run_case(name, case, rounds, out, congestion):
    """Run one federation from nothing to its record; a row of figures."""
    rounds = case.rounds or rounds
    count = [f"federation.rounds={rounds}", f"federation.validate_every={rounds}"]
    plan = load_plan("phantom-private", [*PLAN, *case.overrides, *count])
    shares = deal(plan, out / "data")
    with Network([SERVER_KIT, "lead", *SITES], congestion=congestion) as network:
        folder = out / name
        describe_federation(folder, name="faults", sites=SITES, host=network.addresses[SERVER_KIT], port=PORT)
        kits = provision(folder)
        sites = {site: kits[site] for site in SITES}
        equip(sites, plan, shares)
        for change in case.lines:
            change(network)
        launch = {party: network.inside(party) for party in (SERVER_KIT, *SITES)}
        with (
            network.entered("lead"),
            Trial({SERVER_KIT: kits[SERVER_KIT], **sites}, launch=launch) as trial,
        ):
            with Federation(kits[LEAD]) as federation:
                wait_for_sites(federation.connected, list(SITES), trial)
                before, load = network.stats(), os.getloadavg()[0]
                begun = time.time()
                job, _ = submit_plan(federation, plan, list(SITES))
            number = case.at or rounds // 2
            fault = Cut(network, kits[SERVER_KIT], number, case.cut_s)
            if case.cut_s:
                fault.start()
            kills = (Kill(VICTIM, number),) if case.kill else ()
            error, path = "", None
            try:
                path = follow(kits[SERVER_KIT], job, trial=trial, kills=kills, say=fault.told, timeout=TIMEOUT_S)
            except MedveilError as failure:
                error = repr(failure)[:200]
            seconds = time.time() - begun
            after = network.stats()
    row = {"case": name, "load": [round(load, 1), round(os.getloadavg()[0], 1)], "seconds": round(seconds, 1)}
    if path is None:
        return {**row, "completed": False, "error": error}
    return {**row, **read(path, rounds, fault), "network": _traffic(before, after)}


def read(path, rounds, fault):
    """What the run's folder says."""
    record = json.loads((path / "record.json").read_text())
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    times = [row["seconds"] for row in rows if row["arm"] == "federated"]
    steps = [later - earlier for earlier, later in pairwise(times)]
    events = [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]
    weights = load_file(path / "weights.safetensors")
    digest = hashlib.sha256(b"".join(name.encode() + weights[name].tobytes() for name in sorted(weights))).hexdigest()
    told = {
        "completed": record["training"]["rounds_run"] == rounds,
        "rounds": record["training"]["rounds_run"],
        "parameters": record["model"]["parameters"],
        "step_ms": {
            "median": round(1e3 * statistics.median(steps)),
            "largest": round(1e3 * max(steps)),
        },
        "lost": record["training"]["lost_sites"],
        "weights": digest[:16],
    }
    if fault.at:
        after = [(round(_seconds(event) - fault.at, 1), event) for event in events if _seconds(event) >= fault.at]
        told["mended_after"] = round(fault.mended - fault.at, 1) if fault.mended else None
        told["since_fault"] = [f"{at} s {event['what']} {event['site'] or ''}: {event['text']}" for at, event in after]
    return told


def _seconds(event):
    return datetime.fromisoformat(event["at"]).timestamp()


def _traffic(before, after):
    """Of the server's line in MB, and what the sites' lines lost."""
    change = {
        name: {way: {key: now - before[name][way][key] for key, now in told.items()} for way, told in ways.items()}
        for name, ways in after.items()
    }
    sites = [change[site][way] for site in SITES for way in ("out", "in")]
    return {
        "server_out_MB": round(change[SERVER_KIT]["out"]["bytes"] / 1e6, 1),
        "server_in_MB": round(change[SERVER_KIT]["in"]["bytes"] / 1e6, 1),
        "packets": sum(way["carried"] for way in sites),
        "lost": sum(way["lost"] for way in sites),
        "dropped": sum(way["full"] for way in change[SERVER_KIT].values()) + sum(way["full"] for way in sites),
        "unplugged": sum(way["unplugged"] for way in sites),
    }


def _end(*_):
    """Leave by way of every ``with``, however often one is asked to."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit("ended")


def with_references(names):
    """The cases, each after the one whose weights it must equal."""
    return list(dict.fromkeys(one for name in names for one in (CASES[name].like or name, name)))


def broken_by(name, row):
    """What a case's row says that must not be.

    A site that is lost is not in the sums any more, so that weights may differ then; the undisturbed cases lose none.
    """
    like = CASES[name].like
    if not row["completed"]:
        return [f"did not complete: {row.get('error') or row['rounds']}"]
    if row["lost"]:
        return [f"lost {', '.join(row['lost'])}"] if like == name else []
    return [f"other weights than {like}, or none to compare with"] if like and not row.get("same_weights") else []


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], default=[])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--congestion", choices=("reno", "bbr", "cubic"), default="reno")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if reason := why_not():
        sys.exit(reason)
    signal.signal(signal.SIGTERM, _end)
    out = given.out or Path(tempfile.mkdtemp())
    results = out / "results.jsonl"
    rows, broken = {}, []
    for name in with_references(given.cases or CASES):
        row = rows[name] = run_case(name, CASES[name], given.rounds, out, given.congestion)
        like = rows.get(CASES[name].like)
        if like is not None and row["completed"] and not row["lost"] and like["completed"] and not like["lost"]:
            row["same_weights"] = row["weights"] == like["weights"]
        print(json.dumps(row, indent=1), flush=True)
        with results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        broken += [f"{name}: {text}" for text in broken_by(name, row)]
    for text in broken:
        print(f"BROKEN: {text}")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
