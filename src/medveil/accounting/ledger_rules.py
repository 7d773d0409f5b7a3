"""What may be added to the ledger: the rules that stand between a release and the data."""

from medveil.accounting.events import Stated
from medveil.accounting.ledger_rows import EVERYONE, Budget, Entry, Opened, Reserved
from medveil.accounting.ledger_state import Charges, DataSet, RunCharges, State, counted, epsilon_at
from medveil.errors import BudgetError, LedgerError


def charge(state: State, entry: Entry) -> Entry | None:
    """The entry if it may be added, None if the ledger says so already.

    Raises:
        BudgetError: over a cap.
        LedgerError: other terms than the data set's, or a reservation with other details.
    """
    if not isinstance(entry, Budget | Opened | Reserved):
        return entry
    check_terms(state, entry)
    match entry:
        case Budget():
            data = state.datasets.get(entry.dataset)
            return None if data and data.caps.get(entry.group) == entry else entry
        case Opened():
            return _plan(state, entry)
    return None if _reserved_already(state, entry) else _within_caps(state, entry)


def _plan(state: State, entry: Opened) -> Entry | None:
    data = state.datasets.get(entry.dataset)
    planned = counted(entry.planned)
    if data and data.planned(entry.group, entry.run) == planned:
        return None
    check_caps(state, entry.dataset, entry.group, entry.run, RunCharges(planned=planned))
    return entry


def _reserved_already(state: State, entry: Reserved) -> bool:
    number = state.keys.get(entry.key)
    if number is not None and state.reservations[number] != entry:
        raise LedgerError(
            f"Release {entry.release!r} of run {entry.run!r}, attempt {entry.attempt}, was reserved with other details",
            got="another event, data set, group or terms",
            expected="the same as before",
            remedy="reserve it as the next attempt",
        )
    return number is not None


def _within_caps(state: State, entry: Reserved) -> Reserved:
    check_caps(state, entry.dataset, entry.group, entry.run, RunCharges(reserved=counted(entry.event)))
    return entry


def check_terms(state: State, entry: Budget | Opened | Reserved) -> None:
    """Refuse a charge or cap whose unit or relation is not that of its data set.

    Figures under different units or relations measure different promises; adding them up would be neither.

    Raises:
        LedgerError: unit or relation differ.
    """
    if not isinstance(entry, Budget):
        _check_stated(entry)
    if not state.same_terms(entry):
        data = state.datasets[entry.dataset]
        raise LedgerError(
            f"Data set {entry.dataset!r} is accounted under another unit or relation",
            got=f"unit {entry.unit!r}, relation {entry.relation!r}",
            expected=f"unit {data.unit!r}, relation {data.relation!r}, as in its first row",
            remedy="describe the event in the terms of this ledger",
        )


def check_limit(state: State, limit: Budget, run: str, planned: Charges) -> None:
    """Refuse a run that would bring a patient over a cap that the ledger does not hold, all runs composed.

    Args:
        state: the ledger so far.
        limit: the cap; its relation may be another than the data set's.
        run: its name.
        planned: all that the run may spend.

    Raises:
        BudgetError: it would.
    """
    data = state.datasets.get(limit.dataset, DataSet(limit.unit, limit.relation))
    before = data.run(limit.group, run)
    after = RunCharges(before.reserved, planned).held()
    for group in data.names():
        _check_cap(data, limit, group, data.held(group) - before.held() + after)


def check_caps(state: State, dataset: str, group: str, run: str | None, more: RunCharges) -> None:
    """Refuse what would bring any patient over a cap.

    Args:
        state: the ledger so far.
        dataset: its name.
        group: who is charged.
        run: the run that is charged, or None for one that the ledger does not know yet.
        more: ``reserved`` is added to what the run reserved, ``planned`` replaces its plan where it is not empty.

    Raises:
        BudgetError: the composed epsilon of some group would be above a cap that holds for it.
    """
    data = state.datasets.get(dataset)
    if data is None or not data.caps:
        return
    before = data.run(group, run) if run is not None else RunCharges()
    after = RunCharges(before.reserved, more.planned or before.planned).held(more.reserved)
    for affected in data.names() if group == EVERYONE else [group]:
        total = data.held(affected) - before.held() + after
        for cap in data.limits(affected):
            _check_cap(data, cap, affected, total)


def _check_cap(data: DataSet, cap: Budget, group: str, total: Charges) -> None:
    epsilon = epsilon_at(total, cap.delta, cap.relation)
    if epsilon <= cap.epsilon:
        return
    now = epsilon_at(data.held(group), cap.delta, cap.relation)
    raise BudgetError(
        f"Data set {cap.dataset!r}, group {group!r}: the release would spend more than the cap of group {cap.group!r}",
        got=f"epsilon {epsilon:.6g} at delta {cap.delta:g} with all that is spent and held for open runs",
        expected=f"at most {cap.epsilon:g}, of which {now:.6g} is taken and {max(cap.epsilon - now, 0):.6g} is left",
        remedy="plan fewer steps or more noise, close runs that are over, or have the site raise its cap",
    )


def _check_stated(entry: Opened | Reserved) -> None:
    event = entry.event if isinstance(entry, Reserved) else entry.planned
    for simple in counted(event):
        if isinstance(simple, Stated) and simple.relation != entry.relation:
            raise LedgerError(
                "A stated release holds under another relation than the one it is charged under",
                got=simple.relation,
                expected=entry.relation,
                remedy="state its epsilon under the relation of this data set",
            )
