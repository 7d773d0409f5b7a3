"""Which sites die where, and what must then be in which sum: written from the protocol's description, not its code."""

import itertools
import random
from dataclasses import dataclass, field

# Points of a site's life in a round, in their order. Before its masked vector is with the server, whole:
EARLY = {
    "task-received": "task received, nothing computed",
    "charged": "charged to the ledger, nothing computed",
    "written-down": "contribution on disk, nothing sent",
    "header-sent": "header of the masked vector sent, no word of it",
    "partly-sent": "masked vector sent in part",
}
# and after that:
LATE = {
    "next-keys-not-sent": "masked vector sent, keys of the next step not",
    "sum-sent": "all of it sent, opening not asked for",
    "opening-asked": "opening asked for, list not written down",
    "share-not-sent": "list written down, shares not sent",
    "share-sent": "shares sent",
}
# only where somebody is missing from the list, so that all who are on it sign it first:
AGREEING = {
    "agreement-not-sent": "list with a site missing written down, not signed to the server",
    "agreement-sent": "the same, signed",
    "agreements-received": "the others' signatures received, shares not sent",
}
JOINING = {
    "ready-untold": "data read, not told",
    "ready-told": "ready told, run not begun",
    "keys-sent": "keys announced",
    "shares-not-sent": "all keys received, shares of the first step not sent",
    "shares-sent": "shares of the first step sent",
}
# A sum after the training has joining and a round in one.
TALLY_EARLY = {name: text for name, text in {**JOINING, **EARLY}.items() if name not in {"ready-untold", "ready-told"}}
TALLY_EARLY = {name: text for name, text in TALLY_EARLY.items() if name not in {"charged", "written-down"}}
TEXTS = {**EARLY, **LATE, **AGREEING, **JOINING}


@dataclass(frozen=True)
class Case:
    """Deaths in one sum, or in the joining of the job that follows one.

    Args:
        what: "round", "join", or the sum in which it happens: "scores", "cohort", "threshold", "evaluation".
        deaths: phase by site.
    """

    what: str
    deaths: dict[str, str] = field(hash=False)

    @property
    def victims(self):
        """Who dies."""
        return frozenset(self.deaths)

    @property
    def phase(self):
        """One phase, or several."""
        return " + ".join(sorted(set(self.deaths.values()), key=list(TEXTS).index))

    @property
    def stratum(self):
        """What the table has a row for."""
        return self.what, "mixed" if len(set(self.deaths.values())) > 1 else self.phase, len(self.deaths)

    def included(self, sites):
        """Who must be in the sum in which the deaths happen: all whose masked vector was with the server, whole."""
        return sorted(site for site in sites if self.deaths.get(site) not in {*EARLY, *JOINING})


def same_phase(what, sites, most):
    """Every subset of up to ``most`` sites, at every phase."""
    whole = [phase for phase in TALLY_EARLY if phase != "partly-sent"]  # scores and cohort are one piece
    scores = [phase for phase in whole if phase not in JOINING]
    phases = {"round": [*EARLY, *LATE], "join": [*JOINING], "scores": [*scores, *LATE], "cohort": [*whole, *LATE]}
    phases = phases.get(what, [*TALLY_EARLY, *LATE])
    return [
        Case(what, dict.fromkeys(victims, phase))
        for phase in phases
        for number in range(1, most + 1)
        for victims in itertools.combinations(sites, number)
    ]


def mixed(sites, most):
    """Two sites at different phases of one round, where the first is missing from the list or neither is."""
    if most < 2:
        return []
    pairs = [(one, two) for one in EARLY for two in (*EARLY, *LATE, *AGREEING) if two not in {one, "share-not-sent"}]
    pairs += list(itertools.combinations(LATE, 2))
    return [
        Case("round", dict(zip(victims, pair, strict=True)))
        for pair in pairs
        for victims in itertools.permutations(sites, 2)
    ]


def ordered(cases, seed):
    """In an order in which every row of the table has its first case before any has its second."""
    drawn = random.Random(seed)
    rows = {}
    for case in drawn.sample(cases, len(cases)):
        rows.setdefault(case.stratum if case.stratum[1] != "mixed" else (*case.stratum, case.phase), []).append(case)
    rounds = itertools.zip_longest(*rows.values())
    return [case for level in rounds for case in level if case is not None]
