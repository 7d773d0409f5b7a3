"""Train the runs of a study: one after the other, or several at a time in processes of their own."""

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from medveil.errors import (
    BudgetError,
    DataError,
    DivergedError,
    FederationError,
    GuaranteeError,
    MedveilError,
    PartitionError,
    SplitError,
    UnsupportedModelError,
)
from medveil.study.folder import read_json, write_json
from medveil.study.plan import Plan
from medveil.study.progress import Progress, Silent
from medveil.study.train import train

FAILED = "failed.json"
Mode = Literal["central", "local", "distributed", "site"]
# What is the run's own fault. Anything else (data, folder, ledger, plan) would meet the other runs too: it stops all.
_OF_THE_RUN = (
    BudgetError,
    GuaranteeError,
    DivergedError,
    FederationError,
    UnsupportedModelError,
    SplitError,  # splits and sites that the seed draws
    PartitionError,
)


@dataclass(frozen=True)
class Cell:
    """A run to be trained.

    Args:
        plan: derived for this epsilon and seed.
        mode: kind of the mechanism of the plan that it was derived from.
        epsilon: target, or None without privacy.
        folder: of the run.
    """

    plan: Plan
    mode: Mode
    epsilon: float | None
    folder: Path


@dataclass(frozen=True)
class GridRun:
    """What became of a run.

    Args:
        plan: name of its plan.
        mode: "central", "local", "distributed" or "site".
        epsilon: target, or None without privacy.
        seed: of the run.
        folder: of the run, relative to the study's.
        failed: the reason, or None when the run finished.
        metrics: test figures by name; None where the data do not define one.
        epsilon_reached: what was charged; above the target after a crash, whose round is charged twice.
        noise_multiplier: standard deviation of the noise over the sensitivity.
        delta: of the claim.
        stamp: "NOT PRIVATE", or None.
        phantom: whether the images are synthetic.
    """

    plan: str
    mode: str
    epsilon: float | None
    seed: int
    folder: str
    failed: str | None = None
    metrics: Mapping[str, float | None] | None = None
    epsilon_reached: float | None = None
    noise_multiplier: float | None = None
    delta: float | None = None
    stamp: str | None = None
    phantom: bool = False


def run_cells(
    cells: Sequence[Cell], metrics: Sequence[str], *, ledgers: Path | None, jobs: int, progress: Progress
) -> tuple[GridRun, ...]:
    """Train, go on with, or verify every run.

    Args:
        cells: in the order in which they are begun.
        metrics: names of the test figures to keep.
        ledgers: folder of the parties' ledgers, or None.
        jobs: >= 1, runs at the same time.
        progress: told about every run, and with one job about every round.

    Raises:
        MedveilError: something that is not one run's own failure.
    """
    if jobs > 1 and len(cells) > 1:
        return _side_by_side(cells, metrics, ledgers, min(jobs, len(cells)), progress)
    runs = []
    for number, cell in enumerate(cells, start=1):
        progress.note(f"Run {number} of {len(cells)}: {_describe(cell)}")
        runs.append(run_cell(cell, metrics, ledgers, progress))
        _tell_failure(runs[-1], progress)
    return tuple(runs)


def run_cell(cell: Cell, metrics: Sequence[str], ledgers: Path | None, progress: Progress | None = None) -> GridRun:
    """One run, trained or as it was found."""
    result = partial(
        GridRun,
        plan=cell.plan.name,
        mode=cell.mode,
        epsilon=cell.epsilon,
        seed=cell.plan.seed,
        folder="/".join(cell.folder.parts[-3:]),
    )
    failure = cell.folder / FAILED
    if failure.exists():
        return result(failed=str(read_json(failure)["reason"]))
    try:
        # A run without protection has nothing that a ledger could count; the table says that it stands outside.
        record = train(cell.plan, cell.folder, progress, ledgers=None if cell.epsilon is None else ledgers)
    except MedveilError as error:
        if not _of_the_run(error):
            raise
        if _diverged(error):
            write_json(failure, {"plan_hash": cell.plan.digest(), "reason": str(error)})
        return result(failed=str(error))
    return result(**_facts(record, metrics))


def _of_the_run(error: MedveilError) -> bool:
    # A plain DataError is about the run's own predictions (weights that are finite and huge give none that can be
    # scored); data that are missing or damaged have classes of their own.
    return isinstance(error, _OF_THE_RUN) or type(error) is DataError


def _diverged(error: MedveilError) -> bool:
    """Whether the training itself failed; a site that fails so is reported by the coordinator as gone."""
    return isinstance(error, DivergedError) or (isinstance(error, FederationError) and "diverged" in str(error))


def _facts(record: dict[str, Any], metrics: Sequence[str]) -> dict[str, Any]:
    values = {name: record["test"].get(name, {}).get("value") for name in metrics}
    facts = {"metrics": values, "phantom": record["data"]["kind"] == "phantom"}
    if (privacy := record["privacy"]) is not None:
        names = ("noise_multiplier", "delta", "stamp")
        facts |= {"epsilon_reached": privacy["epsilon"], **{name: privacy[name] for name in names}}
    return facts


def _describe(cell: Cell) -> str:
    epsilon = "without differential privacy" if cell.epsilon is None else f"epsilon {cell.epsilon:g}"
    return f"{cell.plan.name}, {epsilon}, seed {cell.plan.seed}"


def _tell_failure(run: GridRun, progress: Progress) -> None:
    if run.failed is not None:
        progress.note(f"Failed: {run.failed}")


def _side_by_side(
    cells: Sequence[Cell], metrics: Sequence[str], ledgers: Path | None, jobs: int, progress: Progress
) -> tuple[GridRun, ...]:
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    theirs, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_leave_with_parent, initargs=(theirs,))
    try:
        futures = [pool.submit(run_cell, _narrowed(cell, jobs), metrics, ledgers, Silent()) for cell in cells]
        for future, cell in zip(futures, cells, strict=True):
            future.add_done_callback(partial(_tell_end, cell=cell, progress=progress))
        return tuple(future.result() for future in futures)
    except BaseException:  # Ctrl-C too
        for future in futures:
            future.cancel()
        ours.close()  # the workers leave at once, which loses their current round only
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        ours.close()
        theirs.close()


def _tell_end(future: "Future[GridRun]", cell: Cell, progress: Progress) -> None:
    if not future.cancelled() and future.exception() is None:
        progress.note(f"Ended: {_describe(cell)}")
        _tell_failure(future.result(), progress)


def _narrowed(cell: Cell, jobs: int) -> Cell:
    """Share the cores among the processes; no result depends on their number."""
    performance = cell.plan.performance
    workers = performance.workers or max(1, math.ceil(performance.worker_count() / jobs))
    plan = cell.plan.model_copy(update={"performance": performance.model_copy(update={"workers": workers})})
    return replace(cell, plan=plan)


def _leave_with_parent(pipe: Connection) -> None:
    """Let a worker end when the parent does, however it does: a left-over worker would hold its run's folder."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent tells the workers to leave

    def wait() -> None:
        try:
            pipe.recv()
        except (EOFError, OSError):
            os._exit(130)

    threading.Thread(target=wait, daemon=True).start()
