"""One case of drop-out after the other in a running federation, and what is checked after each."""

import time

from dropout_files import require
from dropout_plans import PLAIN

KILLED_S, BACK_S, RUN_S = 180.0, 600.0, 600.0


def play_rounds(rig, run, case, then=None):
    """Let sites die in a round, and perhaps others in the joining of the job that follows; rows of figures.

    The round is summed over those that must be in it, the run goes on, and in the end all are back by themselves.
    """
    job = rig.hold(run)
    number = max(line["round"] for line in rig.sums(job) if line["what"] == "round") + 1
    before = rig.sums(job)[-1]
    require(sorted(before["included"]) == rig.sites, "A case begins with all sites", before)
    parts = [(case.deaths, {"what": "round", "round": number})]
    if then is not None:
        parts.append((then.deaths, {"what": "join", "job_not": job}))
    first, *second = rig.arm(parts)
    rig.gate(open_=True)
    kills = rig.killed(first, case.deaths, KILLED_S)
    died, jobs, later_kills = latest(kills), {job}, {}
    if then is not None:
        later_kills = rig.killed(second[0], then.deaths, BACK_S)
        died = latest(later_kills)
        jobs |= {kill["job"] for kill in later_kills.values()}
        require(len(jobs) == 2, "The sites died in one further job", jobs)
    whole = run.together(jobs, died)
    row = _checked_round(rig, case, job, number)
    row |= {"sums": rig.check_sums(), "steps": run.check_charges(), "noticed_s": run.noticed(kills)}
    row["back_s"] = round(whole["at"] - died, 1) if then is None else None
    if then is None:
        return [row]
    (joined,) = jobs - {job}
    row_of_join = _checked_join(rig, then, joined)
    return [row, row_of_join | {"noticed_s": run.noticed(later_kills), "back_s": round(whole["at"] - died, 1)}]


def latest(kills):
    """When the last of some deaths was."""
    return max(kill["at"] for kill in kills.values())


def _checked_round(rig, case, job, number):
    sums = [line for line in rig.sums(job) if line["what"] == "round"]
    own = next((line for line in sums if line["round"] == number), None)
    later = [line for line in sums if line["round"] > number]
    rest = [site for site in rig.sites if site not in case.victims]
    if len(case.deaths) <= rig.dropouts or set(case.deaths.values()) == {"share-sent"}:
        require(own is not None, "The round was not summed", number)
        require(sorted(own["included"]) == case.included(rig.sites), "Other sites are in the sum than must be", own)
    else:
        require(own is None, "A sum was opened over too few sites", own)
    if len(case.deaths) > rig.dropouts:
        require(not later, "A sum was opened over too few sites", later[:1])
    for line in later:
        require(sorted(line["included"]) == rest, "Other sites are in a later sum than must be", line)
    included = None if own is None else own["included"]
    return {"round": number, "included": included, "rounds_without": len(later)}


def _checked_join(rig, case, job):
    sums = [line for line in rig.sums(job) if line["what"] == "round"]
    rest = [site for site in rig.sites if site not in case.victims]
    require(bool(sums) == (len(case.deaths) <= rig.dropouts), "Sums of the job that they did not join", len(sums))
    for line in sums:
        require(sorted(line["included"]) == rest, "Other sites are in a sum than must be", line)
    return {"round": None, "included": rest if sums else None, "rounds_without": len(sums), "sums": 0, "steps": {}}


def play_tally(rig, case, number, rounds=1):
    """A short run of its own, with deaths in one of its sums beside the rounds; it ends without the sites.

    A site that is back before a round is committed is taken up in a further job: then it is in all later sums.
    """
    rig.gate(open_=True)
    begun = time.time()
    (armed,) = rig.arm([(case.deaths, {"what": case.what} | ({"round": 1} if case.what == "scores" else {}))])
    run = rig.submit(rig.plan(PLAIN, rounds=rounds, number=number))
    kills = rig.killed(armed, case.deaths, RUN_S)
    run.wait()
    died = latest(kills)
    (job,) = {kill["job"] for kill in kills.values()}
    sums = rig.sums(since=begun)
    order = ["round", "scores", "cohort", "threshold", "evaluation"]
    rest = [site for site in rig.sites if site not in case.victims]
    if len(case.deaths) <= rig.dropouts:
        require([line["what"] for line in sums] == order, "Not all sums were opened", [line["what"] for line in sums])
        for line in sums:
            place = order.index(line["what"]) - order.index(case.what)
            must = rig.sites if place < 0 or line["job"] != job else case.included(rig.sites) if place == 0 else rest
            require(sorted(line["included"]) == sorted(must), "Other sites are in the sum than must be", line)
    own = next((line for line in sums if line["what"] == case.what), None)
    return [
        {
            "round": None,
            "included": None if own is None else own["included"],
            "sums": rig.check_sums(),
            "noticed_s": run.noticed(kills),
            "back_s": None,
            "done_s": round(time.time() - died, 1),
            "steps": run.check_charges(),
        }
    ]
