"""Each party's account for one run: what it charges to the party's privacy ledger, and when."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medveil.accounting.events import Event, Repeated, flatten
from medveil.accounting.ledger import Ledger
from medveil.accounting.ledger_rows import EVERYONE
from medveil.dp.plan import PrivacyPlan
from medveil.errors import BudgetError, LedgerError
from medveil.study.arms import Workshop
from medveil.study.folder import file_name
from medveil.study.parties import steps_per_round


class Account:
    """One party's ledger, as one run uses it; a :class:`medveil.federation.site.Spending`.

    Args:
        path: of the ledger; made where there is none.
        run: name of the run, the same after a resume.
        dataset: whose budget is charged.
        bound: what the run promises.
        per_round: steps in a round.
        strict: whether more steps than the plan has are refused, whatever caps the ledger has. Where an interrupted
            round is sent again and not made anew, no honest run needs more.
        repeats: rounds beyond the plan that a strict account allows, because interrupted ones are made anew.
    """

    def __init__(
        self,
        path: Path,
        *,
        run: str,
        dataset: str,
        bound: PrivacyPlan,
        per_round: int,
        strict: bool = False,
        repeats: int = 0,
    ) -> None:
        self._ledger = Ledger(path)
        self._run = run
        self._dataset = dataset
        self._bound = bound
        self._event = Repeated(event=bound.step_event(), count=per_round)
        self._strict = strict
        self._most = bound.steps + repeats * per_round

    def check(self, rounds_done: int) -> None:
        """Refuse a ledger that cannot be this run's, or whose caps were meant for this data set and miss it.

        Raises:
            LedgerError: as said.
        """
        steps = self.steps
        if steps < rounds_done * self._event.count:
            raise LedgerError(
                "The ledger does not hold what this run has already released",
                got=f"{steps} steps",
                expected=f"at least {rounds_done * self._event.count}",
                remedy="give --ledger the folder with which the run was begun",
            )
        datasets = self._ledger.state().datasets
        capped = sorted(name for name, data in datasets.items() if data.caps)
        if capped and not (self._dataset in datasets and datasets[self._dataset].caps):
            raise LedgerError(
                "The ledger has caps, but none for the data set of this plan",
                got=f"data set {self._dataset}",
                expected=f"one of {', '.join(capped)}",
                remedy="set a cap for it with medveil budget set, or correct the name that the cap was set for",
            )

    def open(self) -> None:
        """Hold back what the whole run may cost.

        Raises:
            BudgetError: it does not fit under the party's cap.
        """
        self._ledger.open_run(
            self._run,
            dataset=self._dataset,
            unit=self._bound.unit,
            relation=self._bound.relation,
            planned=self._bound.event(),
        )

    @contextmanager
    def release(self, round_number: int, *, nothing_left: bool = False) -> Iterator[None]:
        """Charge a round before the data are touched; a round that is repeated after a crash is charged again.

        Args:
            round_number: counted from 1.
            nothing_left: nothing of an earlier attempt left the site, so what was charged for it and not completed
                pays for this one.

        Raises:
            BudgetError: the cap does not allow it, or the account is strict and the plan is used up.
        """
        release = f"round-{round_number}"
        attempt = self._unfinished(release) if nothing_left else None
        if self._strict and attempt is None and self.steps + self._event.count > self._most:
            raise BudgetError(
                "The server asks for more releases than the plan has",
                got=f"{self.steps} steps are charged, and {self._event.count} more asked for",
                expected=f"{self._most} steps",
                remedy="end the run; what it has released is in the ledger",
            )
        reservation = self._ledger.reserve(
            run=self._run,
            release=release,
            attempt=attempt,
            dataset=self._dataset,
            unit=self._bound.unit,
            relation=self._bound.relation,
            event=self._event,
        )
        yield
        self._ledger.commit(reservation)

    def _unfinished(self, release: str) -> int | None:
        """The last attempt at a release, where it was never completed."""
        state = self._ledger.state()
        attempt = state.attempts[self._run, release]
        number = state.keys.get((self._run, release, attempt))
        return None if number is None or number in state.committed else attempt

    @property
    def steps(self) -> int:
        """Private steps that this run has charged."""
        held = self.charged()
        return 0 if held is None else sum(count for _, count in flatten(held))

    def charged(self) -> Event | None:
        """Everything that this run has charged, attempts before a crash included; None where the party refused."""
        return self._ledger.charged(self._run, self._dataset)

    def give_back_unused(self) -> None:
        """Hold nothing back for a run of which nothing was charged: it did not get so far. It may open again.

        Raises:
            LedgerError: the ledger cannot be used.
        """
        if self.steps == 0:
            self._ledger.close_run(self._run)

    def close(self) -> dict[str, Any]:
        """End the account; what the ledger says, for the record.

        A plan that was used up, or of which nothing was, is given back. One that was used in part (the training stopped
        early) stays held: when to stop was decided by looking at releases, and then only the whole plan bounds what
        they cost.
        """
        self.give_back_unused()
        if self.steps >= self._bound.steps:
            self._ledger.close_run(self._run)
        spent = self._ledger.spent(self._dataset, delta=self._bound.delta)
        cap = self._ledger.state().datasets[self._dataset].caps.get(EVERYONE)
        entries, head = self._ledger.head
        self._ledger.close()
        return {
            "entries": entries,
            "head": head,
            "epsilon_all_runs": spent.held,
            "runs": len(spent.runs),
            "cap": None if cap is None else cap.epsilon,
        }


def open_accounts(
    shop: Workshop, parties: Sequence[str], rounds_done: int, *, repeats: int | None = None
) -> dict[str, Account]:
    """One account a party; none where the plan promises nothing.

    Args:
        shop: the run.
        parties: names of those that have not been lost.
        rounds_done: committed by earlier processes of this run.
        repeats: rounds that may be made anew beyond the plan; None sets no limit but the caps, except under secure
            aggregation, where no round is made anew.

    Raises:
        LedgerError: a ledger does not hold the rounds that this run has done, or has caps but none for this data set.
    """
    if shop.bound is None:
        return {}
    shop.ledgers.mkdir(parents=True, exist_ok=True)
    run = shop.folder.run_id()
    accounts = {
        party: Account(
            shop.ledgers / f"{file_name(party)}.sqlite",
            run=run,
            dataset=shop.prepared.dataset.name,
            bound=shop.bound,
            per_round=steps_per_round(shop.plan),
            strict=shop.plan.privacy.secure_aggregation is not None or repeats is not None,
            repeats=0 if shop.plan.privacy.secure_aggregation is not None else repeats or 0,
        )
        for party in parties
    }
    for account in accounts.values():
        account.check(rounds_done)
    return accounts
