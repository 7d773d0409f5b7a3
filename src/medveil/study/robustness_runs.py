"""Train the runs of a robustness study, one after the other, and score what each attack reached."""

import hashlib
import json
import math
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medveil.dp.plan import PrivacyPlan
from medveil.errors import DataError, DivergedError, FederationError, MedveilError, RunError
from medveil.evaluation.curves import FIXED_HALF
from medveil.federation.site import Work
from medveil.federation.stages import Pipeline
from medveil.study.arms import Outcome, Tamper, Workshop, build_model, load_outcome
from medveil.study.federated import train_federated
from medveil.study.folder import MetricsLog, RunFolder, read_json, write_json
from medveil.study.plan import Plan
from medveil.study.prepare import Prepared, TestSet, prepare
from medveil.study.privacy import bind_plan
from medveil.study.progress import Progress
from medveil.study.robustness_attack import Attack, Hostility, Watched, poisoned, stamped
from medveil.study.robustness_plan import Setting
from medveil.study.scoring import Scorer, point_metrics
from medveil.training.device import be_deterministic, choose_device

RESULT = "result.json"
_NORMS = "norms.jsonl"
_HALF = 0.5


@dataclass(frozen=True)
class Cell:
    """A run to be made.

    Args:
        plan: under the setting, with the seed.
        setting: what defends.
        attack: what hostile sites do, or None where there are none.
        fraction: of the sites that are hostile.
        hostile: their names.
        folder: of the run.
    """

    plan: Plan
    setting: Setting
    attack: Attack | None
    fraction: float
    hostile: tuple[str, ...]
    folder: Path

    def digest(self) -> str:
        """SHA-256 over everything that decides the run's result."""
        attack = None if self.attack is None else asdict(self.attack)
        content = [self.plan.digest(), self.setting, attack, self.hostile]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclass(frozen=True)
class RobustnessRun:
    """What became of a run.

    Args:
        setting: what defended.
        attack: its kind, or "none".
        fraction: of the sites that were hostile.
        hostile: how many sites that is.
        seed: of the run.
        rounds: done.
        score: clean test AUC, or Dice; None where the run ended without a model.
        backdoor: of the test images of other classes, the share that the trigger turns into the target; None for
            masks.
        refused_groups: group sums beyond the norm bound, over all rounds.
        groups: sums that the run would have taken over all rounds.
        clipped: coordinates beyond the range of the encoding; None where that is not told.
        largest_change: L2 norm of the largest change of a site; measured in the unattacked run of "sum" only.
        l2_norm: the norm bound, or None.
        hides_among: sites that hide each other in the smallest sum.
        epsilon: of the privacy claim against those that it counts on, or None.
        failed: why it ended without a model, or None.
    """

    setting: str
    attack: str
    fraction: float
    hostile: int
    seed: int
    rounds: int = 0
    score: float | None = None
    backdoor: float | None = None
    refused_groups: int = 0
    groups: int = 0
    clipped: int | None = None
    largest_change: float | None = None
    l2_norm: float | None = None
    hides_among: int = 0
    epsilon: float | None = None
    failed: str | None = None


class Bench:
    """Trains cells; data that several of them share are read once.

    Args:
        target: class that the trigger is tried for.
        progress: told what happens.
    """

    def __init__(self, target: int, progress: Progress) -> None:
        self._target, self._progress = target, progress
        self._last: tuple[str, Prepared] | None = None

    def run(self, cell: Cell, *, hides_among: int, l2_norm: float | None, measure: bool) -> RobustnessRun:
        """One run, trained or as it was found.

        Args:
            cell: what to train.
            hides_among: sites of the smallest sum, for the table.
            l2_norm: the bound, for the table.
            measure: whether to note the largest change of a site.

        Raises:
            MedveilError: something that is not the run's own failure.
        """
        blank = RobustnessRun(
            setting=cell.setting,
            attack="none" if cell.attack is None else cell.attack.kind,
            fraction=cell.fraction,
            hostile=len(cell.hostile),
            seed=cell.plan.seed,
            l2_norm=l2_norm,
            hides_among=hides_among,
        )
        folder = RunFolder(cell.folder)
        with folder.claim():
            folder.bind_plan({"plan_hash": cell.digest(), "plan": cell.plan.model_dump(mode="json")})
            stored = cell.folder / RESULT
            if stored.exists():
                return _restored(blank, read_json(stored))
            try:
                facts = self._train(cell, folder, measure=measure)
            except MedveilError as error:
                if not _of_the_run(error):
                    raise
                facts = {"failed": str(error), "rounds": _rounds(folder)}
            write_json(stored, facts)
        return _restored(blank, facts)

    def _train(self, cell: Cell, folder: RunFolder, *, measure: bool) -> dict[str, Any]:
        plan = cell.plan
        bound = bind_plan(plan)
        device = choose_device(plan.performance.device)
        be_deterministic(device)
        honest = self._prepared(plan)
        folder.bind_inputs({"data": honest.fingerprint})
        if not set(cell.hostile) <= {site.name for site in honest.sites}:
            raise RunError("A hostile site is none of the plan's", expected="sites as the partition names them")
        prepared = honest if cell.attack is None else poisoned(honest, cell.attack, cell.hostile, plan.seed)
        first = build_model(plan, prepared.input_shape, prepared.num_classes).to(device)
        norms = cell.folder / _NORMS
        shop = Workshop(
            plan=plan,
            prepared=prepared,
            folder=folder,
            log=MetricsLog(folder.metrics),
            progress=self._progress,
            device=device,
            first=first,
            bound=bound,
            ledgers=folder.ledgers,
            tamper=_measuring(norms) if measure else _tamper(cell),
        )
        try:
            outcome = train_federated(shop)
        except BaseException:  # Ctrl-C too: work in other threads stops
            shop.halt.set()
            raise
        facts = self._scores(shop, outcome)
        return {
            **facts,
            **_counts(outcome, plan),
            "rounds": outcome.rounds,
            "epsilon": None if bound is None else _epsilon(bound),
            "largest_change": _largest(norms) if measure else None,
        }

    def _scores(self, shop: Workshop, outcome: Outcome) -> dict[str, float | None]:
        prepared = shop.prepared
        scorer = Scorer(shop.plan, prepared.dataset.class_names, shop.device)
        model = load_outcome(shop.model(), outcome)
        result = scorer.score(scorer.predict(model, prepared.test.data), prepared.test, FIXED_HALF, intervals=False)
        metric = "auc" if shop.plan.task == "classification" else "dice"
        score = point_metrics(result).get(metric)
        if shop.plan.task != "classification":
            return {"score": score, "backdoor": None}
        tried = _triggered(prepared.test, self._target)
        probabilities = scorer.predict(model, tried.data)[:, self._target]
        return {"score": score, "backdoor": float(np.mean(probabilities > _HALF)) if len(tried.data) else None}

    def _prepared(self, plan: Plan) -> Prepared:
        data = plan.data.model_dump(mode="json")
        key = json.dumps([data, plan.seed, str(plan.data_root)], sort_keys=True)
        if self._last is None or self._last[0] != key:
            self._progress.note("Reading the data")
            self._last = (key, prepare(plan))
        return self._last[1]


def _restored(blank: RobustnessRun, facts: Mapping[str, Any]) -> RobustnessRun:
    return replace(blank, **facts)


def _of_the_run(error: MedveilError) -> bool:
    return isinstance(error, FederationError | DivergedError) or type(error) is DataError


def _tamper(cell: Cell) -> Tamper | None:
    if cell.attack is None:
        return None
    return Hostility(cell.attack, frozenset(cell.hostile), obeys_stages=cell.setting == "site-bound-obeyed")


def _measuring(path: Path) -> Tamper:
    """Every site is honest, and the norms of its changes are written down, also for a run that goes on later."""
    lock = threading.Lock()

    def tell(norm: float) -> None:
        with lock, path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(norm) + "\n")

    def watch(_site: str, work: Work, pipeline: Pipeline) -> tuple[Work, Pipeline]:
        return Watched(work, tell), pipeline

    return watch


def _largest(path: Path) -> float:
    lines = path.read_text(encoding="utf-8").splitlines()
    norms = [json.loads(line) for line in lines]
    if not norms or not all(math.isfinite(norm) for norm in norms):
        raise RunError("The sites' changes were not measured", remedy="delete the study's folder and run it again")
    return float(max(norms))


def _counts(outcome: Outcome, plan: Plan) -> dict[str, Any]:
    secure = outcome.secure
    assert secure is not None
    settings = plan.privacy.secure_aggregation
    assert settings is not None
    return {
        "refused_groups": secure["refused_groups"],
        "groups": settings.groups * outcome.rounds,
        "clipped": secure["clipped"],
    }


def _epsilon(bound: PrivacyPlan) -> float:
    return float(bound.total().epsilon)


def _rounds(folder: RunFolder) -> int:
    return len(folder.metrics.read_text(encoding="utf-8").splitlines()) if folder.metrics.exists() else 0


def _triggered(test: TestSet, target: int) -> TestSet:
    """Test images of other classes, with the trigger."""
    rows = np.flatnonzero(test.data.targets.numpy() != target)
    data = test.data
    stamped_data = replace(
        data,
        images=stamped(data.images[rows]),
        targets=data.targets[rows],
        subject=data.subject[rows],
        volume=data.volume[rows],
        position=data.position[rows],
        spacing_mm=tuple(data.spacing_mm[row] for row in rows),
    )
    return replace(test, data=stamped_data)
