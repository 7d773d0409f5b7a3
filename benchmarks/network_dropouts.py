"""Drop-outs in a live federation: sites die at every point of the protocol, and each sum must be the survivors'.

OMP_NUM_THREADS=1 python benchmarks/network_dropouts.py [--sites 5] [--colluding 0] [--all | --sample N] [--out FOLDER]

Real processes on loopback: a server, its sites, a process for each job, mutual TLS. A seam that the script puts into
the job processes (``peers/dropout_hook``; the product has none) lets a site's job process kill itself with SIGKILL at
a named point of the protocol. It also writes down each site's plain vector before masking, and each sum that is opened.
After every case: each sum since the last case equals that of the included sites' vectors, to the bit; included are
exactly the sites whose masked vector was whole at the server; the run went on, took the sites up again by itself in
a further job, and no ledger has a round twice, lacks one that its site is in, or has another.

Cases: every set of up to d_max sites (``dropouts``; the most that the threshold allows) at every point of a round
and of the joining of a further job, two sites at different points, d_max + 1 sites, and, in short runs of their own,
the sums of validation scores, cohort, threshold and test scores. A table comes out, and one JSON line a case.
"""

import argparse
import itertools
import json
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from dropout_cases import TEXTS, Case, mixed, ordered, same_phase
from dropout_files import MismatchError
from dropout_plans import PRIVATE
from dropout_play import play_rounds, play_tally
from dropout_rig import Rig

from medveil.errors import MedveilError
from medveil.federation.secure.settings import SecureAggregation

ROUNDS_A_CASE = 30
TALLIES = ("scores", "cohort", "threshold", "evaluation")
KINDS = ("split", "round", "mixed", "join", "over", "tally")


def most_dropouts(sites, colluding):
    """As many as the threshold of so many sites allows."""
    return SecureAggregation(colluding=colluding).dropouts_of(sites)


def over(sites, most):
    """One site more than may be missing: nothing may be opened that was not opened before."""
    one_more = sites[: most + 1]
    return [Case("round", dict.fromkeys(one_more, phase)) for phase in ("partly-sent", "share-not-sent", "share-sent")]


def split(sites, most):
    """One site more than may be missing, the first of them before the others wrote down a list without it."""
    first, *others = sites[: most + 1]
    in_round = {first: "task-received"} | dict.fromkeys(others, "agreement-not-sent")
    in_tally = {first: "task-received"} | dict.fromkeys(others, "share-not-sent")  # it had announced no keys yet
    return [Case("round", in_round), Case("evaluation", in_tally)]


def choose(given, sites, most):
    """Cases by kind, in the order in which they are run."""
    every = {
        "round": ordered(same_phase("round", sites, most), given.seed),
        "mixed": ordered(mixed(sites, most), given.seed),
        "join": ordered(same_phase("join", sites, most), given.seed),
        "over": over(sites, most),
        "split": split(sites, most),
        "tally": ordered([case for what in TALLIES for case in same_phase(what, sites, most)], given.seed),
    }
    chosen = {kind: cases for kind, cases in every.items() if kind in given.kinds}
    return chosen if given.all else {kind: cases[: given.sample] for kind, cases in chosen.items()}


def sweep(rig, chosen, minutes, say):
    """Play cases until they are through or the time is up; rows of figures, and how many were left."""
    end = time.monotonic() + 60 * minutes
    rows, left = [], sum(map(len, chosen.values()))

    def played(cases, play):
        nonlocal left
        if time.monotonic() > end:
            return True
        found = _played(cases, play)
        for row in found:
            rows.append(row)
            say(row)
            left -= 1
        return not any("error" in row for row in found)

    def in_one_run(plays):
        if not plays:
            return
        run = rig.submit(rig.plan(PRIVATE, rounds=20 + ROUNDS_A_CASE * len(plays), number=len(rows)))
        run.together(set(), 0.0)
        pairs = ((played, [one for one in pair if one], partial(play_rounds, rig, run, *pair)) for pair in plays)
        if all(play(cases, act) for play, cases, act in pairs):
            rig.finish(run)

    in_one_run([(case, None) for case in chosen.get("split", ()) if case.what == "round"])
    long, joins = [case for kind in ("round", "mixed", "over") for case in chosen.get(kind, ())], chosen.get("join", [])
    in_one_run(list(itertools.zip_longest(long, joins[: len(long)])))
    short = [case for kind in ("tally", "split") for case in chosen.get(kind, ()) if case.what != "round"]
    for number, case in enumerate(short):
        played([case], partial(play_tally, rig, case, number))
    return rows, left


def _played(cases, play):
    begun = time.monotonic()
    rows = [{"what": one.what, "phase": one.phase, "k": len(one.deaths), "deaths": one.deaths} for one in cases]
    try:
        found = play()
    except (MismatchError, MedveilError) as error:
        found = [{"error": f"{type(error).__name__}: {error}"}]
        rows = rows[:1]
        traceback.print_exc()
    seconds = round(time.monotonic() - begun, 1)
    return [{**one, **figures, "case_s": seconds} for one, figures in zip(rows, found, strict=True)]


def table(rows, most):
    """A row for each point and number of sites."""
    grouped = defaultdict(list)
    for row in rows:
        kind = "mixed" if len(set(row["deaths"].values())) > 1 else row["phase"]
        grouped[row["what"], kind, row["k"]].append(row)
    lines = [
        "| in | dies at | sites | cases | sums, all equal | noticed after, s | all in a sum again after, s |",
        "|---|---|---|---|---|---|---|",
    ]
    order = [*TEXTS, "mixed"]
    for what, kind, number in sorted(
        grouped, key=lambda key: (key[0] not in {"round", "join"}, key[0], order.index(key[1]), key[2])
    ):
        cases = grouped[what, kind, number]
        text = TEXTS.get(kind, "at different points")
        good = [row for row in cases if "error" not in row]
        sums = sum(row["sums"] for row in good)
        told = f"{sums}" if len(good) == len(cases) else f"{sums}; {len(cases) - len(good)} cases FAILED"
        noticed, back = ([row[name] for row in good if row.get(name) is not None] for name in ("noticed_s", "back_s"))
        beyond = " (d_max + 1)" if number > most else ""
        lines.append(
            f"| {what} | {text} | {number}{beyond} | {len(cases)} | {told} | {_range(noticed)} | {_range(back)} |"
        )
    return "\n".join(lines)


def _range(seconds):
    if not seconds:
        return ""
    return f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=5)
    parser.add_argument("--colluding", type=int, default=0)
    parser.add_argument("--all", action="store_true", help="every case")
    parser.add_argument("--sample", type=int, default=10, help="cases of each kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=600.0, help="no case begins later")
    parser.add_argument("--pace", type=float, default=2.0, help="seconds that the server waits after a round")
    parser.add_argument("--port", type=int, default=8140)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    out = given.out or Path(tempfile.mkdtemp())
    out.mkdir(parents=True, exist_ok=True)
    most = most_dropouts(given.sites, given.colluding)

    def say(row):
        print(json.dumps(row), flush=True)
        with (out / "results.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    options = {"colluding": given.colluding, "dropouts": most, "port": given.port, "pace": given.pace}
    with Rig(out / "federation", sites=given.sites, **options) as rig:
        chosen = choose(given, rig.sites, most)
        rows, left = sweep(rig, chosen, given.minutes, say)
        again = rig.check_repeated()
    failed = sum("error" in row for row in rows)
    print(f"{given.sites} sites, colluding {given.colluding}, d_max {most}")
    print(f"{len(rows)} cases, {failed} failed, {left} left for want of time")
    print(f"{sum(row.get('sums', 0) for row in rows)} sums equal; {again} vectors given again, each the same\n")
    print(table(rows, most))
    sys.exit(bool(failed or not rows))


if __name__ == "__main__":
    main()
