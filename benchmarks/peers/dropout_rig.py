"""One federation of real processes for many cases of drop-out."""

import json
import os
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from dropout_files import MismatchError, equals, read_json, read_lines, require
from dropout_plans import POLICY, PRIVATE
from dropout_run import BACK_S, Run

from medveil.connect.home import Home
from medveil.connect.job import Federation
from medveil.connect.project import read_project
from medveil.connect.provision import SERVER_KIT, provision
from medveil.connect.setup import LEAD, describe_federation, equip
from medveil.connect.submitting import submit_plan
from medveil.connect.trial import Trial, wait_for_sites
from medveil.study.deal import deal
from medveil.study.plan import load_plan

HOOK = Path(__file__).parent / "dropout_hook"
POLL_S = 0.1
_OF = 25  # of a key: run and what the vectors are computed from
FINISH_S = 1200.0


class Rig:
    """A server and its sites.

    Args:
        out: folder of the federation and of what the seam writes.
        sites: how many.
        colluding: of the plans.
        dropouts: of the plans.
        port: on loopback.
        pace: seconds that the server waits after every round, so that few rounds pass while sites come back.
    """

    def __init__(self, out, *, sites, colluding, dropouts, port, pace=2.0):
        self.out, self.dropouts, self.port, self.pace = out, dropouts, port, pace
        self._cases = self._asked = 0
        self._checked = set()
        self._path = os.environ.get("PYTHONPATH", "")
        self.sites = [f"site-{number}" for number in range(1, sites + 1)]
        self.control = out / "control"
        for name in ("arms", "sums", "vectors"):
            (self.control / name).mkdir(parents=True)
        self._values = {"sites": sites, "subjects": 16 * sites, "colluding": colluding, "dropouts": dropouts}
        self._values["nominal"] = 10 * sites
        self.gate(open_=True)

    def __enter__(self):
        os.environ["MEDVEIL_DROPOUTS"] = str(self.control.resolve())
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HOOK), self._path]))
        plan = self.plan(PRIVATE, rounds=1)
        describe_federation(self.out, name="dropouts", sites=self.sites, host="localhost", port=self.port)
        self.kits = provision(self.out)
        kits = {site.name: self.kits[site.name] for site in read_project(self.out).sites}
        for kit in kits.values():
            Home(kit).policy_path.write_text(POLICY)
        equip(kits, plan, deal(plan, self.out / "data"))
        self.trial = Trial({SERVER_KIT: self.kits[SERVER_KIT], **kits})
        self.trial.__enter__()
        try:
            with Federation(self.kits[LEAD]) as federation:
                wait_for_sites(federation.connected, self.sites, self.trial)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.trial.__exit__()
        del os.environ["MEDVEIL_DROPOUTS"]
        os.environ["PYTHONPATH"] = self._path

    def plan(self, text, rounds, number=0):
        """A plan for these sites."""
        path = self.out / "plan.toml"
        path.write_text(text.format(**self._values, rounds=rounds, number=number))
        return load_plan(path, [])

    def submit(self, plan):
        """Hand a plan in; the run's first job."""
        with Federation(self.kits[LEAD]) as federation:
            return Run(self, submit_plan(federation, plan, self.sites)[0], plan)

    def finish(self, run):
        """Let a run go to its end without pauses, and check what it summed and charged."""
        pace, self.pace = self.pace, 0.0
        self.gate(open_=True)
        run.wait(FINISH_S)
        self.check_sums()
        run.check_charges()
        self.pace = pace
        self.gate(open_=True)

    def gate(self, *, open_):
        """Let the server go on after a round, or not."""
        self._asked += 1
        self._write("gate.json", {"open": open_, "pace": self.pace, "asked": self._asked})
        return self._asked

    def hold(self, run):
        """Wait until the server stands between two rounds of a run; its job."""
        asked = self.gate(open_=False)
        return self.until(lambda: self._held(run, asked), BACK_S, "the server stands between two rounds")

    def _held(self, run, asked):
        run.check()
        held = read_json(self.control / "held.json") or {}
        return held.get("job") if held.get("asked") == asked else None

    def arm(self, parts):
        """Say where sites are to die.

        Args:
            parts: one after the other: phase by site, and in what.

        Returns:
            A number for each part.
        """
        arms, numbers = defaultdict(list), []
        for deaths, where in parts:
            self._cases += 1
            numbers.append(self._cases)
            for site, phase in deaths.items():
                arms[site].append({"phase": phase, "case": self._cases, **where})
        for site in self.sites:
            self._write(f"arms/{site}.json", arms[site])
        return numbers

    def _write(self, name, content):
        path = self.control / name
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(content))
        fresh.replace(path)

    def kills(self, case):
        """Deaths of a case so far, by site."""
        return {line["site"]: line for line in read_lines(self.control / "kills.jsonl") if line["case"] == case}

    def killed(self, case, deaths, limit_s):
        """Wait until all of a case have died."""

        def died():
            found = self.kills(case)
            return found if len(found) == len(deaths) else None

        return self.until(died, limit_s, f"{deaths} have died")

    def sums(self, job=None, since=0.0):
        """Sums that the server opened."""
        found = read_lines(self.control / "sums.jsonl")
        return [line for line in found if job in (None, line["job"]) and line["at"] >= since]

    def until(self, what, limit_s, text):
        """Wait for something.

        Raises:
            MismatchError: it did not come.
        """
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            found = what()
            if found:
                return found
            self.trial.check()
            time.sleep(POLL_S)
        raise MismatchError(f"Not within {limit_s:g} s: {text}")

    def check_sums(self):
        """Every sum that was opened and not checked before equals, to the bit, that of the included sites' vectors."""
        checked = 0
        for line in self.sums():
            if line["key"] in self._checked:
                continue
            self._checked.add(line["key"])
            total = np.load(self.control / "sums" / f"{line['key']}.npy")
            vectors = [self.vector(line["key"], site) for site in line["included"]]
            require(equals(total, vectors), "The opened sum is not that of the included sites' vectors", line)
            checked += 1
        return checked

    def forget_checks(self):
        """Let every sum be checked again."""
        self._checked.clear()

    def vector(self, key, site):
        """What a site gave to a sum, before it was masked."""
        return np.load(self.control / "vectors" / f"{key}.{site}.npy")

    def check_repeated(self):
        """A site that is asked for the same round again gives the same vector: how many were given more than once."""
        opened = {line["key"][:_OF] for line in self.sums() if line["what"] == "round"}
        given = defaultdict(list)
        for path in (self.control / "vectors").glob("*.npy"):
            key, site = path.name.removesuffix(".npy").rsplit(".", 1)
            if key[:_OF] in opened:
                given[key[:_OF], site].append(path)
        again = [paths for paths in given.values() if len(paths) > 1]
        for first, *others in again:
            for other in others:
                require(np.array_equal(np.load(first), np.load(other)), "A round was answered anew", other.name)
        return len(again)
