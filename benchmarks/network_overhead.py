"""What a step costs over the network beyond computing: engine, secure sum, computing; and memory over many steps.

OMP_NUM_THREADS=1 python benchmarks/network_overhead.py [--sites 5] [--steps 60] [--model resnet20|tiny] [--out FOLDER]

Real processes on loopback with certificates: a server, and a site for each scanner of a phantom; federated SGD with
batches of four images and secure sums, without differential privacy, because a private site does not tell how long it
computes (that tells how many patients were drawn). Computing is the longest of the sites' in each step, since all of
them compute at the same time; with more sites than cores they wait for each other, which is counted as computing.
Memory is the resident size of every process, read every two seconds and kept in memory.jsonl of the folder. The table
is of the steps alone, without starting and scoring: the second tenth of the time against the last, and a slope (Theil
and Sen's, which a few strange readings do not move) over the last four fifths in MB per 1000 steps. A process with
fewer than 40 readings in that time is too short to say, and is listed.

Exit code 1: the median beyond computing is over 250 ms with five sites, or a process grew by more than 5 %, or a party
has no process that was long enough while others have. With another number of sites only memory decides. Both bounds are
those of a machine that does nothing else.
"""

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
from scipy.stats import theilslopes

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
BOUND_SITES, BOUND_MS = 5, 250.0
GROWTH = 5.0  # percent
LEAST_READINGS = 40
MOST_READINGS = 1000  # of a slope, which takes the square of it


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
        told = []
        folder = follow(
            kits[SERVER_KIT],
            job,
            trial=trial,
            kills=(),
            say=lambda text: told.append((time.time(), text)),
            timeout=3600 * 3,
        )
    memory.ended.set()
    memory.join()
    with (out / "memory.jsonl").open("w") as file:
        for name, readings in memory.sizes.items():
            file.writelines(json.dumps([name, *reading]) + "\n" for reading in readings)
    times = [row["seconds"] for row in lines(folder / "metrics.jsonl") if row["arm"] == "federated"]
    broken = report_time(folder, times, {name: Home(kit).folder / "metrics.jsonl" for name, kit in sites.items()})
    training = [at for at, text in told if text.startswith("training, round")][SKIPPED:]
    during = {
        name: [(at, size) for at, size in readings if training and training[0] <= at <= training[-1]]
        for name, readings in memory.sizes.items()
    }
    broken += report_memory(during, (len(times) - 1) / (times[-1] - times[0]), [SERVER_KIT, *names])
    for text in broken:
        print(f"BROKEN: {text}")
    sys.exit(bool(broken))


def table(head, rows):
    print("".join(f"{title:>24}" if at else f"{title:<42}" for at, title in enumerate(head)))
    for name, *values in rows:
        print(f"{name:<42}" + "".join(f"{value:>24.1f}" for value in values))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def report_time(folder, times, at_sites):
    """Print the shares of a step; the bound that does not hold, if it does not."""
    record = json.loads((folder / "record.json").read_text())
    whole = [later - earlier for earlier, later in pairwise(times)][SKIPPED:]
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
    over = len(steps) == BOUND_SITES and not 1e3 * median(beyond) <= BOUND_MS
    return [f"{1e3 * median(beyond):.0f} ms a step beyond computing; at most {BOUND_MS:.0f}"] if over else []


def report_memory(sizes, steps_a_second, parties):
    """Print how every process grew; what grew too much, and who has no process that was long enough to say."""
    rows, short, broken = [], [], []
    for name, readings in sorted(sizes.items()):
        if len(readings) < LEAST_READINGS:
            short.append(f"{name} ({len(readings)} readings)")
            continue
        first, last, growth = grown(readings)
        rows.append([name, first, last, growth, slope(readings) * 1000 / steps_a_second])
        if not growth <= GROWTH:
            broken.append(f"{name} grew by {growth:.1f} %; at most {GROWTH:.0f}")
    if rows:
        table(["process", "MB, second tenth", "MB, last tenth", "growth %", "MB per 1000 steps"], rows)
    else:
        print("no process ran for long enough to say whether it grows: ask for more --steps")
    if short:
        print(f"too short to say: {', '.join(short)}")
    told = {(row[0].split()[0].split("/")[-1], row[0].split()[1]) for row in rows}
    missing = [(party, kind) for party in parties for kind in ("parent", "job") if rows and (party, kind) not in told]
    return broken + [f"no {kind} process of {party} was long enough to say, as others were" for party, kind in missing]


def grown(readings):
    """Median MB in the second and in the last tenth of the readings, and the growth in percent."""
    tenth = len(readings) // 10
    first = statistics.median(size for _, size in readings[tenth : 2 * tenth])
    last = statistics.median(size for _, size in readings[-tenth:])
    return first / 1e6, last / 1e6, 100 * (last / first - 1)


def slope(readings):
    """MB a second over the last four fifths of the readings: the median of the slopes between any two of them."""
    late = np.array(readings[len(readings) // 5 :])
    late = late[:: -(-len(late) // MOST_READINGS)]
    return float(theilslopes(late[:, 1] / 1e6, late[:, 0] - late[0, 0]).slope)


if __name__ == "__main__":
    main()
