"""What a step costs over the network beyond computing: engine, secure sum, computing; and memory over many steps.

OMP_NUM_THREADS=1 python benchmarks/network_overhead.py [--sites 5] [--steps 60] [--model resnet20|tiny] [--out FOLDER]

Real processes on loopback with certificates: a server, and a site for each scanner of a phantom; federated SGD with
batches of four images and secure sums, without differential privacy, because a private site does not tell how long it
computes (that tells how many patients were drawn). Computing is the longest of the sites' in each step, since all of
them compute at the same time; with more sites than cores they wait for each other, which is counted as computing.
Memory is the resident size of every process, read every two seconds: the second tenth of the time against the last.
"""

import argparse
import json
import statistics
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path

import psutil

from medveil.connect.home import Home
from medveil.connect.job import Federation
from medveil.connect.project import read_project
from medveil.connect.provision import SERVER_KIT, provision
from medveil.connect.setup import LEAD, describe_federation, equip
from medveil.connect.submitting import submit_plan
from medveil.connect.trial import Trial, follow, wait_for_sites
from medveil.study.deal import deal
from medveil.study.plan import load_plan

MODELS = {
    "resnet20": 'model={ kind = "resnet20" }',
    "tiny": 'model={ kind = "scattering", positions = [2, 2], order = 1 }',
}
SKIPPED = 5  # first steps, in which everything is set up


class Memory(threading.Thread):
    """Resident size of every process of the trial, every two seconds."""

    def __init__(self, root):
        super().__init__(daemon=True)
        self.root, self.sizes, self.ended = root, {}, threading.Event()

    def run(self):
        """Read until ended."""
        while not self.ended.wait(2.0):
            for process in psutil.Process().children(recursive=True):
                try:
                    command = process.cmdline()
                    kit = next((part for part in command if str(self.root) in part), "")
                    place = Path(kit).relative_to(self.root).parts[:2] if kit else ("?",)
                    kind = "parent" if "connect" in command else "job"
                    key = f"{'/'.join(place)} {kind} {process.pid}"
                    self.sizes.setdefault(key, []).append((time.time(), process.memory_info().rss))
                except (psutil.NoSuchProcess, ValueError):
                    continue


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--sites", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--model", choices=sorted(MODELS), default="resnet20")
    parser.add_argument("--port", type=int, default=8120)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    out = given.out or Path(tempfile.mkdtemp())
    names = [f"scanner-{number}" for number in range(1, given.sites + 1)]
    plan = load_plan(
        "phantom",
        [
            f"data.source={{ kind = 'phantom', subjects = {40 * given.sites}, scanners = {given.sites}, seed = 1 }}",
            "data.partition={ kind = 'natural', column = 'scanner' }",
            MODELS[given.model],
            f"federation.rounds={given.steps}",
            f"federation.validate_every={given.steps}",
            "federation.algorithm={ kind = 'fedsgd' }",
            "federation.select=last",
            "training.batch_size=4",
            "training.optimiser={ kind = 'sgd', lr = 0.01 }",
            "references.central=false",
            "references.local_only=false",
            f"privacy.secure_aggregation={{ colluding = {int(given.sites > 3)}, dropouts = 1 }}",
        ],
    )
    describe_federation(out, name="overhead", sites=names, host="localhost", port=given.port)
    kits = provision(out)
    sites = {site.name: kits[site.name] for site in read_project(out).sites}
    equip(sites, plan, deal(plan, out / "data"))
    memory = Memory(out)
    with Trial({SERVER_KIT: kits[SERVER_KIT], **sites}) as trial:
        memory.start()
        with Federation(kits[LEAD]) as federation:
            wait_for_sites(federation.connected, names, trial)
            job, _ = submit_plan(federation, plan, names)
        folder = follow(kits[SERVER_KIT], job, trial=trial, kills=(), say=lambda _text: None, timeout=3600 * 3)
    memory.ended.set()
    report_time(folder, {name: Home(kit).folder / "metrics.jsonl" for name, kit in sites.items()})
    report_memory(memory.sizes)


def table(head, rows):
    print("".join(f"{title:>24}" if at else f"{title:<42}" for at, title in enumerate(head)))
    for name, *values in rows:
        print(f"{name:<42}" + "".join(f"{value:>24.1f}" for value in values))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def report_time(folder, at_sites):
    record = json.loads((folder / "record.json").read_text())
    rounds = [row["seconds"] for row in lines(folder / "metrics.jsonl") if row["arm"] == "federated"]
    whole = [later - earlier for earlier, later in pairwise(rounds)][SKIPPED:]
    steps = {
        name: {row["round"]: row for row in lines(path) if "compute_seconds" in row} for name, path in at_sites.items()
    }
    numbers = sorted(set.intersection(*(set(rows) for rows in steps.values())))[SKIPPED + 1 :]
    compute = [max(rows[number]["compute_seconds"] for rows in steps.values()) for number in numbers]
    crypto = [max(rows[number]["secure_sum_seconds"] for rows in steps.values()) for number in numbers]
    server = record["secure_aggregation"]["server_seconds"] / record["secure_aggregation"]["sums_opened"]
    median = statistics.median
    beyond = [one - two for one, two in zip(whole, compute, strict=False)]
    print(f"{record['model']['parameters']:,} parameters, {len(steps)} sites, {len(whole)} steps measured")
    table(
        ["a step", "ms, median", "ms, 95th percentile"],
        [
            ["whole", 1e3 * median(whole), 1e3 * sorted(whole)[int(0.95 * len(whole))]],
            ["computing, the slowest site", 1e3 * median(compute), 1e3 * sorted(compute)[int(0.95 * len(compute))]],
            ["beyond computing", 1e3 * median(beyond), 1e3 * sorted(beyond)[int(0.95 * len(beyond))]],
            ["of it secure sum, the slowest site", 1e3 * median(crypto), 1e3 * sorted(crypto)[int(0.95 * len(crypto))]],
            ["of it secure sum, server", 1e3 * server, float("nan")],
            ["of it engine and messages", 1e3 * (median(beyond) - median(crypto) - server), float("nan")],
        ],
    )


def report_memory(sizes):
    rows = []
    for name, measured in sorted(sizes.items()):
        if len(measured) < 40:
            continue
        tenth = len(measured) // 10
        first = statistics.median(size for _, size in measured[tenth : 2 * tenth])
        last = statistics.median(size for _, size in measured[-tenth:])
        rows.append([name, first / 1e6, last / 1e6, 100 * (last / first - 1)])
    if rows:
        table(["process", "MB, second tenth", "MB, last tenth", "growth %"], rows)


if __name__ == "__main__":
    main()
