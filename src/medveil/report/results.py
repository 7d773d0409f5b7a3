"""Sections about how good the model is: tables with intervals, drawn on one axis where they are compared."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from medveil.report import wording
from medveil.report.blocks import Block, Cell, Prose, Section, Strip, Table
from medveil.report.reading import Run
from medveil.report.record import External, Quantities, Quantity, Record, Scores
from medveil.report.wording import NOT_MEASURED, PRIMARY

_GROUP_METRICS = {
    "classification": ("auc", "sensitivity", "specificity"),
    "segmentation": ("dice", "surface_dice", "hd95_mm", "hd95_pixels"),
}
_NOTHING = Quantity()


def comparison(run: Run) -> Section:
    """The main figure beside the same training with all data pooled and with each site alone."""
    record = run.record
    name = PRIMARY[record.task]
    found = record.test.metrics.get(name, _NOTHING)
    rows = [("This model", "trained across the sites", found)]
    central, alone = record.references.central, record.references.local_only
    rows.append(("All data pooled", "what sharing the images would give", _of(central, name)))
    rows.append(("Each site alone", "mean over the sites", _of(alone, name)))
    for site, metrics in (alone.per_site if alone else {}).items():
        rows.append((site, "alone", metrics.get(name, _NOTHING)))
    axis = _Axis.around(quantity for *_, quantity in rows)
    table = Table(
        caption=f"{wording.metric(name).label} on the same test patients",
        columns=(
            Cell("Training"),
            Cell(wording.metric(name).label, number=True),
            Cell(f"{wording.level(record)} interval"),
            axis.heading(),
        ),
        rows=tuple(
            (
                Cell(label, hint=hint),
                Cell(wording.number(quantity.value, name), number=True),
                Cell("" if quantity.low is None else wording.interval(quantity, name)),
                axis.cell(quantity, found, main=index == 0),
            )
            for index, (label, hint, quantity) in enumerate(rows)
        ),
        note="The thin line marks this model. Reference trainings are shown without intervals.",
    )
    return Section("comparison", "How it compares", (table,))


def test_figures(run: Run) -> Section:
    """Every metric of the test with its interval, next to the references."""
    record = run.record
    central, alone = record.references.central, record.references.local_only
    columns = ("Metric", "This model", f"{wording.level(record)} interval", "All data pooled", "Each site alone")
    rows = tuple(
        (
            Cell(wording.metric(name).label, hint=wording.metric(name).meaning),
            _figure(record.test.metrics[name], name),
            Cell(wording.interval(record.test.metrics[name], name)),
            _figure(_of(central, name), name),
            _figure(_of(alone, name), name),
        )
        for name in wording.ordered(record.test.metrics)
    )
    table = Table(
        caption="Test figures",
        columns=tuple(Cell(label, number=index not in (0, 2)) for index, label in enumerate(columns)),
        rows=rows,
        note=_how_intervals(record),
    )
    blocks: tuple[Block, ...] = (table,) if rows else (Prose((f"Test figures: {NOT_MEASURED}.",)),)
    return Section("test", "Results on the test patients", blocks)


def groups(run: Run) -> Section:
    """The same figures for each site and each subgroup."""
    record = run.record
    tables = [_groups("Site", record.test.per_site, record)]
    tables += [_groups(column, values, record) for column, values in record.test.per_subgroup.items() if values]
    blocks: list[Block] = [table for table in tables if table is not None]
    missing = [
        name
        for name, measured in (("by site", record.test.per_site), ("by subgroup", record.test.per_subgroup))
        if not measured
    ]
    if missing:
        blocks.append(Prose((f"Results {' and '.join(missing)}: {NOT_MEASURED}.",), tone="quiet"))
    return Section("groups", "By site and by subgroup", tuple(blocks))


def elsewhere(run: Run) -> Section:
    """Tests on data that the model's sites did not provide."""
    record = run.record
    if not record.external:
        text = f"A test on data from elsewhere: {NOT_MEASURED}."
        return Section("elsewhere", "On data from elsewhere", (Prose((text,), tone="quiet"),))
    name = PRIMARY[record.task]
    label = wording.metric(name).label
    table = Table(
        caption=f"{label} on other data, and how far it falls below the test above",
        columns=(
            Cell("Data"),
            Cell("Patients", number=True),
            Cell(label, number=True),
            Cell(f"{wording.level(record)} interval"),
            Cell("Fall", number=True),
        ),
        rows=tuple(_other(external, name) for external in record.external),
    )
    return Section("elsewhere", "On data from elsewhere", (table,))


@dataclass(frozen=True)
class _Axis:
    """The shared axis of a column of strips."""

    low: float
    high: float

    @classmethod
    def around(cls, quantities: Iterable[Quantity]) -> "_Axis":
        """From the next tenth below everything shown, up to 1."""
        shown = [
            number
            for quantity in quantities
            for number in (quantity.value, quantity.low, quantity.high)
            if number is not None
        ]
        low = math.floor(10 * min(shown, default=0.0)) / 10
        return cls(min(low, 0.9), 1.0)

    def heading(self) -> Cell:
        ends = (f"{self.low:.1f}", f"{self.high:.1f}")
        return Cell(f"Drawn from {ends[0]} to {ends[1]}", axis=ends)

    def cell(self, quantity: Quantity, reference: Quantity, *, main: bool = False) -> Cell:
        if quantity.value is None:
            return Cell("")
        value = self._place(quantity.value)
        low, high = (None if end is None else self._place(end) for end in (quantity.low, quantity.high))
        line = None if reference.value is None else self._place(reference.value)
        return Cell("", strip=Strip(value, low, high, line, main))

    def _place(self, number: float) -> float:
        return round(100 * min(max((number - self.low) / (self.high - self.low), 0), 1), 2)


def _groups(column: str, results: Mapping[str, Quantities], record: Record) -> Table | None:
    if not results:
        return None
    primary, *others = [
        name
        for name in _GROUP_METRICS[record.task]
        if name == PRIMARY[record.task] or any(name in metrics for metrics in results.values())
    ]
    axis = _Axis.around(metrics.get(primary, _NOTHING) for metrics in results.values())
    label = wording.metric(primary).label
    headings = [Cell(_heading(column)), Cell(label, number=True), axis.heading()]
    headings += [Cell(wording.metric(name).label, number=True) for name in others]
    overall = record.test.metrics.get(primary, _NOTHING)
    rows = []
    for group, metrics in results.items():
        row = [Cell(group), _with_interval(metrics, primary)]
        row.append(axis.cell(metrics.get(primary, _NOTHING), overall))
        row += [_with_interval(metrics, name) for name in others]
        rows.append(tuple(row))
    return Table(f"By {column.lower()}", tuple(headings), tuple(rows), "The thin line marks all test patients.")


def _heading(column: str) -> str:
    """A column of somebody's table as a heading."""
    return column[:1].upper() + column[1:].replace("_", " ")


def _other(external: External, name: str) -> tuple[Cell, ...]:
    found = external.test.metrics.get(name, _NOTHING)
    patients = NOT_MEASURED if external.num_subjects is None else f"{external.num_subjects:,}"
    return (
        Cell(external.name, hint=external.relation),
        Cell(patients, number=True),
        _figure(found, name),
        Cell(wording.interval(found, name)),
        _figure(external.fall.get(name, _NOTHING), name),
    )


def _of(scores: Scores | None, name: str) -> Quantity:
    return scores.metrics.get(name, _NOTHING) if scores else _NOTHING


def _figure(quantity: Quantity, name: str) -> Cell:
    return Cell(wording.number(quantity.value, name), number=True)


def _with_interval(metrics: Quantities, name: str) -> Cell:
    quantity = metrics.get(name, _NOTHING)
    if quantity.value is None:
        return Cell(NOT_MEASURED, hint=quantity.reason or "", number=True)
    hint = "no interval" if quantity.low is None else wording.interval(quantity, name)
    return Cell(wording.number(quantity.value, name), hint=hint, number=True)


def _how_intervals(record: Record) -> str:
    used, threshold = record.details.bootstrap, record.details.threshold
    how = f"Intervals: {used.resamples:,} resamples of whole patients." if used else ""
    if threshold is None:
        return how
    source = record.details.threshold_source or "how it was chosen is not recorded"
    return f"{how} Decisions at the threshold {threshold:.3f} ({source}).".strip()
