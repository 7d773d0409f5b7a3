"""One run of a plan, as its server and its sites wrote it down."""

from collections import Counter

from dropout_files import read_json, read_lines, require, seconds_of

from medveil.accounting.ledger import Ledger
from medveil.connect.deciding import verify_site_log
from medveil.connect.home import Home
from medveil.connect.provision import SERVER_KIT

BACK_S, RUN_S = 600.0, 600.0


class Run:
    """One run of a plan, over its jobs.

    Args:
        rig: of the federation.
        first: job.
        plan: of the run.
    """

    def __init__(self, rig, first, plan):
        self.rig, self.first, self.plan = rig, first, plan
        self._server = rig.kits[SERVER_KIT]

    @property
    def folder(self):
        """Of the run at the server; None before it has begun."""
        for path in (self._server / "medveil" / "runs").glob("*/state/network.json"):
            if (read_json(path) or {}).get("first_job") == self.first:
                return path.parent.parent
        return None

    def jobs(self):
        """Jobs so far, with their states."""
        found, job = {}, self.first
        while job:
            content = read_json(self._server / "medveil" / "jobs" / f"{job}.json") or {"status": "waiting"}
            found[job], job = content["status"], content.get("next")
        return found

    def state(self):
        """Of the last job."""
        return list(self.jobs().values())[-1]

    def wait(self, limit_s=RUN_S):
        """Until the run is done.

        Raises:
            MismatchError: it failed, or takes too long.
        """
        state = self.rig.until(lambda: self.state() in {"done", "failed"} and self.state(), limit_s, "the run is over")
        require(state == "done", "The run failed", self.events()[-3:])

    def events(self, what=None, since=0.0):
        """What the server noted."""
        folder = self.folder
        told = [] if folder is None else read_lines(folder / "events.jsonl")
        return [line for line in told if what in (None, line["what"]) and seconds_of(line) >= since]

    def noticed(self, kills):
        """Seconds until these deaths were noticed, the slowest; None where the job ended before it could notice any."""
        waits = []
        for site, kill in kills.items():
            later = self.events(since=kill["at"])
            ended = next((at for at, line in enumerate(later) if line["what"] == "joined"), len(later))
            lost = [line for line in later[:ended] if line["what"] == "lost" and line["site"] == site]
            waits += [seconds_of(line) - kill["at"] for line in lost[:1]]
        return round(max(waits), 2) if waits else None

    def check(self):
        """Whether the run has not failed.

        Raises:
            MismatchError: it has.
        """
        require(self.state() != "failed", "The run failed", [line["text"] for line in self.events()[-4:]])

    def together(self, others, since):
        """Wait for the first sum over all sites in a job that is none of these; that sum."""
        sites = self.rig.sites

        def found():
            self.check()
            later = [line for line in self._own_sums() if line["job"] not in others and line["at"] >= since]
            return next((line for line in later if sorted(line["included"]) == sites), None)

        return self.rig.until(found, BACK_S, "all sites are back in a sum")

    def check_charges(self):
        """Every site's audit log is whole, and its ledger has every round that it is in, once, and no other.

        A round in which the site died may be charged though it is in no sum.

        Returns:
            Rounds charged, by site; empty where nothing is promised.
        """
        opened = [line for line in self._own_sums() if line["what"] == "round"]
        last = max((line["round"] for line in opened), default=0)
        died = read_lines(self.rig.control / "kills.jsonl")
        steps = {}
        for site in self.rig.sites:
            verify_site_log(self.rig.kits[site])
            if self.plan.privacy.dp is None:
                continue
            charged = self._charged(site)
            twice = sorted(number for number, count in charged.items() if count > 1)
            require(not twice, f"{site} charged rounds twice", twice)
            given = {line["round"] for line in opened if site in line["included"]}
            require(given <= charged.keys(), f"{site} is in sums that it was not charged for", given - charged.keys())
            spare = {line["round"] for line in died if line["site"] == site and line["job"] in self.jobs()}
            more = {number for number in charged.keys() - given - spare if number <= last}
            require(not more, f"{site} was charged for rounds that it is not in", more)
            steps[site] = len(charged)
        return steps

    def _charged(self, site):
        """How often each round was charged."""
        name = (self.folder / "state" / "run-id").read_text().strip()
        charged = Counter()
        for path in Home(self.rig.kits[site]).ledgers.glob("*.sqlite"):
            with Ledger(path, create=False) as ledger:
                bodies = [row["body"] for row in ledger.export()]
            charged.update(
                int(body["release"].removeprefix("round-"))
                for body in bodies
                if body["kind"] == "reserve" and body["run"] == name
            )
        return charged

    def _own_sums(self):
        jobs = self.jobs()
        return [line for line in self.rig.sums() if line["job"] in jobs]
