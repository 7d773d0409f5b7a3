"""The coordinator's sums beside the training: the decision threshold, the test scores, the cohort."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medveil.connect.tallies import needed_tallies
from medveil.errors import TooFewSitesError
from medveil.evaluation.curves import Threshold
from medveil.federation.messages import Purpose, Ready
from medveil.federation.remote import Remote
from medveil.federation.secure.decided import Decided, check_there
from medveil.federation.secure.origin import fingerprint
from medveil.federation.secure.sums import sum_parameters
from medveil.federation.tally import TallyServer
from medveil.secagg.ring import RingVector
from medveil.study.arms import Outcome
from medveil.study.plan import Plan
from medveil.study.secure_statistics import CohortTally
from medveil.study.tallied import ClassificationTally, Tally, ThresholdTally, fixed_threshold
from medveil.study.tallied_masks import SegmentationTally


@dataclass(frozen=True, eq=False)
class Summed:
    """What the sites' sums say.

    Args:
        test: ``metrics`` and ``details`` over all test patients.
        per_site: metrics by site; empty under secure aggregation.
        cohort: of the training images, or None.
        threshold: of decisions; None for masks.
        missing: what could not be summed, with the reason.
    """

    test: dict[str, Any]
    per_site: dict[str, Any]
    cohort: dict[str, Any] | None
    threshold: Threshold | None
    missing: dict[str, str]


class Sums:
    """Asks the sites, one sum after the other.

    Args:
        plan: of the run.
        facts: what the sites' data look like.
        remote: to the sites.
        sites: all of the run.
        roster: their identity keys.
        outcome: of the training.
        session: what tells this job's sums from others.
        decided: over whom a sum is opened.
    """

    def __init__(
        self,
        plan: Plan,
        facts: Ready,
        remote: Remote,
        sites: Sequence[str],
        roster: Mapping[str, bytes],
        outcome: Outcome,
        *,
        session: str,
        decided: Decided,
    ) -> None:
        self._decided = decided
        self._plan, self._facts, self._remote, self._sites = plan, facts, remote, tuple(sites)
        self._roster, self._outcome, self._session = dict(roster), outcome, session

    def read(self) -> Summed:
        """All sums that the plan asks for.

        Raises:
            TooFewSitesError: too few sites are left for the test scores.
            InterruptedRunError: the run was ended from outside.
        """
        cohort: dict[str, Any] | None = None
        threshold = fixed_threshold(self._plan) if self._plan.task == "classification" else None
        missing: dict[str, str] = {}
        tallies = needed_tallies(self._plan, self._facts.class_names, self._facts.input_shape[0], self._sites)
        for purpose, tally in tallies.items():
            try:
                total, included, vectors = self._sum(purpose, tally)
            except TooFewSitesError as error:
                if purpose == "evaluation":
                    raise
                missing[purpose] = error.what
                continue
            if isinstance(tally, CohortTally):
                cohort = tally.read(total, included)
            elif isinstance(tally, ThresholdTally):
                threshold = tally.read(total, included)
            else:
                test = self._scores(tally, total, included, threshold)
                per_site = {site: self._scores(tally, one, 1, threshold)["metrics"] for site, one in vectors.items()}
        return Summed(test, per_site, cohort, threshold, missing)

    def _scores(self, tally: Tally, total: RingVector, included: int, threshold: Threshold | None) -> dict[str, Any]:
        if isinstance(tally, SegmentationTally):
            return tally.read(total, included, plan=self._plan)
        assert isinstance(tally, ClassificationTally)
        assert threshold is not None
        return tally.read(total, included, plan=self._plan, threshold=threshold)

    def _sum(self, purpose: Purpose, tally: Tally) -> tuple[RingVector, int, dict[str, RingVector]]:
        settings = self._plan.privacy.secure_aggregation
        here = [site for site in self._sites if site not in self._remote.left and site in self._remote.sites]
        number = self._outcome.rounds + 1
        noted = self._decided.of(purpose, number)
        check_there(noted, here)
        here = [site for site in here if noted.get(site, True)]
        absent = [site for site in self._sites if site not in here]
        weights = {"weights": self._outcome.weights, "buffers": self._outcome.buffers}
        scored = purpose != "cohort"
        parameters = None
        if settings is not None:
            context = f"{self._plan.digest()} {self._session} {purpose}"
            parameters = sum_parameters(self._roster, settings, context)
        server = TallyServer(
            purpose,
            here,
            absent,
            length=tally.length,
            origin=fingerprint(*(weights.values() if scored else ())),
            parameters=parameters,
            decided=self._decided,
            number=number,
        )
        self._remote.lead(server, server.ask(weights if scored else {}))
        assert server.total is not None
        return server.total, len(server.included), server.vectors
