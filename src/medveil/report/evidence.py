"""Sections that show rather than tell: curves, confusion, classes and pictures."""

from collections.abc import Mapping

from medveil.report import figures, pictures, wording
from medveil.report.blocks import Block, Cell, Chart, Charts, Gallery, LegendItem, Prose, Section, Table
from medveil.report.reading import Run, Step
from medveil.report.record import Details, Quantities, Record
from medveil.report.wording import NOT_MEASURED, PRIMARY

_BINARY = 2
_ROLES = ("third", "second", "main")  # the model that the page is about is drawn last, on top
_PICTURE_WARNING = (
    "These pictures come from the test patients. Treat this page like the patients' other records: do not pass it on "
    "outside the hospitals that may see them."
)


def learning(run: Run) -> Section:
    """How training went, round by round."""
    title = "How the training went"
    name = PRIMARY[run.record.task]
    label = wording.metric(name).label
    steps = run.steps or ()
    best = run.record.training.get("best_round")
    best_round = best if isinstance(best, int) else None
    charts = (
        _curves(steps, f"{label} on the validation patients", label, "learning", best_round, metric=name),
        _curves(steps, "Training loss", "Loss", "loss", best_round, metric=None),
    )
    shown = tuple(chart for chart in charts if chart is not None)
    missing = _unreleased(run)
    if not shown and not missing:
        missing = (f"Learning curves: {NOT_MEASURED}.",)
    blocks = (
        *((Charts(shown),) if shown else ()),
        *((Prose(missing, tone="quiet"),) if missing else ()),
    )
    return Section("learning", title, blocks)


def decisions(run: Run) -> Section:
    """Classification: ROC, calibration, confusion. Segmentation: every class by itself."""
    record = run.record
    if record.task == "segmentation":
        return Section("classes", "Class by class", (_per_class(record),))
    charts = tuple(chart for chart in (_roc(record.details), _calibration(record.details)) if chart is not None)
    missing = [
        what
        for what, there in (
            *((("ROC curve", record.details.roc),) if len(record.data.class_names) <= _BINARY else ()),
            ("Calibration", record.details.calibration),
            ("Confusion table", record.details.confusion),
        )
        if there is None
    ]
    blocks: list[Block] = [Charts(charts)] if charts else []
    if record.details.confusion is not None:
        blocks.append(_confusion(record.details.confusion, record.data.class_names))
    blocks += [Prose((f"{', '.join(missing)}: {NOT_MEASURED}.",), tone="quiet")] if missing else []
    return Section("decisions", "Ranking, probabilities and decisions", tuple(blocks))


def examples(run: Run) -> Section:
    """Test images with the model's answers."""
    title = "Examples"
    if run.examples is None or not len(run.examples.images):
        return Section("examples", title, (Prose((f"Example pictures: {NOT_MEASURED}.",), tone="quiet"),))
    names, threshold = run.record.data.class_names, run.record.details.threshold
    gallery: Gallery = (
        pictures.classified(run.examples, names, threshold)
        if run.record.task == "classification"
        else pictures.segmented(run.examples, names)
    )
    shown = f"Showing {len(gallery.items)} of {len(run.examples.images)} stored examples."
    notice = () if run.record.data.kind == "phantom" else (Prose((_PICTURE_WARNING,), tone="warning"),)
    return Section("examples", title, (*notice, Prose((shown,), tone="quiet"), gallery))


def _unreleased(run: Run) -> tuple[str, ...]:
    """Why a run with differential privacy shows no curve of its own."""
    own = [step for step in run.steps or () if step.arm == "federated"]
    if run.record.privacy is None or not own:
        return ()
    reasons = (
        (
            all(step.train_loss is None for step in own),
            (
                "Training loss of this model: not released. It is a figure of the training patients without noise, "
                "which epsilon would not cover."
            ),
        ),
        (
            not any(step.validation for step in own),
            "Validation during the training: none. Its scores would be figures of patients without noise.",
        ),
    )
    return tuple(text for applies, text in reasons if applies)


def _curves(
    steps: tuple[Step, ...], title: str, label: str, name: str, best_round: int | None, *, metric: str | None
) -> Chart | None:
    by_arm: dict[str, list[tuple[float, float]]] = {}
    for step in sorted(steps, key=lambda step: step.round):
        value = step.train_loss if metric is None else (step.validation or {}).get(metric)
        if value is not None:
            by_arm.setdefault(step.arm, []).append((step.round, value))
    if not by_arm:
        return None
    lines = sorted(((_role(arm), points) for arm, points in by_arm.items()), key=lambda line: _ROLES.index(line[0]))
    description = f"{title}. " + " ".join(
        f"{_arm_label(arm)}: {points[0][1]:.3f} in round {points[0][0]}, {points[-1][1]:.3f} in round {points[-1][0]}."
        for arm, points in by_arm.items()
    )
    svg = figures.learning_curves(lines, label=label, name=name, best_round=best_round)
    return Chart(title, description, svg, _legend(by_arm))


def _role(arm: str) -> str:
    return {"federated": "main", "central": "second"}.get(arm, "third")


def _arm_label(arm: str) -> str:
    return {"federated": "This model", "central": "All data pooled"}.get(arm, arm.replace("local_only/", "") + " alone")


def _legend(arms: Mapping[str, object]) -> tuple[LegendItem, ...]:
    present = {_role(arm) for arm in arms}
    alone = sum(_role(arm) == "third" for arm in arms)
    items = (
        LegendItem("This model", "main"),
        LegendItem("All data pooled", "second", dashed=True),
        LegendItem(f"{wording.count(alone, 'site')} alone", "third"),
    )
    return tuple(item for item in items if item.colour in present)


def _roc(details: Details) -> Chart | None:
    if details.roc is None:
        return None
    point = _operating_point(details)
    where = "" if point is None else f" At the threshold used: {point[1]:.2f} found, {point[0]:.2f} false alarms."
    legend = (LegendItem("All thresholds", "main"), LegendItem("Coin toss", "muted", dashed=True))
    return Chart(
        "ROC curve",
        "Share of positives found against share of false alarms, for every threshold." + where,
        figures.roc(details.roc, name="roc", operating_point=point),
        (*legend, *((LegendItem("○ The threshold used", "none"),) if point else ())),
    )


def _operating_point(details: Details) -> tuple[float, float] | None:
    if details.confusion is None or [len(row) for row in details.confusion] != [2, 2]:
        return None
    (kept, alarms), (missed, found) = details.confusion
    return (alarms / (kept + alarms), found / (missed + found)) if kept + alarms and missed + found else None


def _calibration(details: Details) -> Chart | None:
    curve = details.calibration
    if curve is None or not curve.count:
        return None
    pairs = zip(curve.confidence, curve.accuracy, curve.count, strict=True)
    text = "; ".join(f"stated {stated:.2f}, was so {was:.2f} ({amount} images)" for stated, was, amount in pairs)
    legend = (
        LegendItem("Model; larger dots, more images", "main"),
        LegendItem("Perfectly honest", "muted", dashed=True),
    )
    return Chart("Calibration", f"{text}.", figures.calibration(curve, name="calibration"), legend)


def _confusion(matrix: tuple[tuple[int, ...], ...], class_names: tuple[str, ...]) -> Table:
    def name(index: int) -> str:
        return class_names[index] if index < len(class_names) else f"class {index}"

    return Table(
        caption="Decisions on the test images (rows: truth, columns: the model's decision)",
        columns=(Cell("Truth"), *(Cell(f"called {name(k)}", number=True) for k in range(len(matrix)))),
        rows=tuple(
            (
                Cell(name(true)),
                *(Cell(f"{n:,}", hint=f"{n / max(sum(row), 1):.0%}", shade=_share(n, row), number=True) for n in row),
            )
            for true, row in enumerate(matrix)
        ),
    )


def _share(amount: int, row: tuple[int, ...]) -> int:
    return round(100 * amount / max(sum(row), 1))


def _per_class(record: Record) -> Block:
    classes = record.details.per_class
    if not classes:
        return Prose((f"Figures by class: {NOT_MEASURED}.",), tone="quiet")
    names = wording.ordered({name: quantity for metrics in classes.values() for name, quantity in metrics.items()})
    return Table(
        caption="Each structure by itself",
        columns=(Cell("Structure"), *(Cell(wording.metric(name).label, number=True) for name in names)),
        rows=tuple(
            (Cell(group), *(_class_cell(metrics, name) for name in names)) for group, metrics in classes.items()
        ),
        note=_conventions(record.details),
    )


def _class_cell(metrics: Quantities, name: str) -> Cell:
    quantity = metrics.get(name)
    if quantity is None or quantity.value is None:
        return Cell(NOT_MEASURED, hint=(quantity.reason or "") if quantity else "", number=True)
    hint = "no interval" if quantity.low is None else wording.interval(quantity, name)
    return Cell(wording.number(quantity.value, name), hint=hint, number=True)


def _conventions(details: Details) -> str:
    tolerance, one_sided = details.surface_tolerance, details.one_sided
    parts = []
    if tolerance is not None:
        parts.append(
            f"Surface Dice: outlines closer than {tolerance:g} {details.distance_unit or ''}".strip() + " agree."
        )
    if one_sided is not None:
        parts.append(
            f"In {wording.count(one_sided, 'case')} only the reference or only the model shows a structure: these "
            "count as the worst possible."
        )
    return " ".join(parts)
