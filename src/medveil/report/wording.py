"""The plain sentences: what the figures mean, said so that no reader needs the field's words."""

from collections.abc import Sequence
from dataclasses import dataclass

from medveil.report import claim_wording
from medveil.report.record import Quantities, Quantity, Record, Scores
from medveil.study.card import NO_PROMISE

NOT_MEASURED = "not measured"
PRIMARY = {"classification": "auc", "segmentation": "dice"}
_SAME = 0.005
_KILO = 1000
_SIXTY = 60  # seconds in a minute, minutes in an hour
_PLANE_AXES = 3  # channels, rows, columns


@dataclass(frozen=True)
class Metric:
    """How a metric is spoken of.

    Args:
        label: for tables and charts.
        meaning: one sentence for a reader who has never met it.
        unit: "" for a share, else "mm" or "pixels".
        higher_is_better: which way is good.
    """

    label: str
    meaning: str
    unit: str = ""
    higher_is_better: bool = True


_HD95 = "How far the two outlines lie apart at their worst, the worst 5 % left aside (0 is perfect)."
METRICS = {
    "auc": Metric("AUC", "How often it ranks two images of different kinds correctly (0.5 is chance, 1 is perfect)."),
    "average_precision": Metric("Average precision", "How pure the images are that it ranks highest (1 is perfect)."),
    "sensitivity": Metric("Sensitivity", "Share of the positive images that it finds."),
    "specificity": Metric("Specificity", "Share of the negative images that it leaves alone."),
    "balanced_accuracy": Metric("Balanced accuracy", "Mean share of each kind that it calls correctly."),
    "mcc": Metric("Matthews correlation", "Agreement of its decisions with the truth (0 is chance, 1 is perfect)."),
    "calibration_error": Metric(
        "Calibration error",
        "Mean gap between the probability it states and what happens (0 is perfect).",
        higher_is_better=False,
    ),
    "dice": Metric("Dice", "Overlap of its mask with the reference mask (0 is none, 1 is perfect)."),
    "surface_dice": Metric("Surface Dice", "Share of the two outlines that agree within the tolerance."),
    "hd95_mm": Metric("Hausdorff distance, 95 %", _HD95, unit="mm", higher_is_better=False),
    "hd95_pixels": Metric("Hausdorff distance, 95 %", _HD95, unit="pixels", higher_is_better=False),
}


def metric(name: str) -> Metric:
    """How a metric is spoken of; an unknown one by its own name."""
    return METRICS.get(name, Metric(name.replace("_", " ").capitalize(), ""))


def ordered(metrics: Quantities) -> list[str]:
    """The names of ``metrics``, known ones in the usual order, then the others."""
    return [name for name in METRICS if name in metrics] + [name for name in metrics if name not in METRICS]


def number(value: float | None, name: str = "") -> str:
    """A figure as text: three decimals for shares, one and the unit for distances.

    >>> number(0.94251, "auc"), number(3.14, "hd95_mm"), number(None)
    ('0.943', '3.1 mm', 'not measured')
    """
    if value is None:
        return NOT_MEASURED
    unit = metric(name).unit
    return f"{value:.1f} {unit}" if unit else f"{value:.3f}".replace("-", "\N{MINUS SIGN}")


def interval(quantity: Quantity, name: str = "") -> str:
    """An interval as text that does not wrap: "0.912 to 0.961", or why there is none."""
    if quantity.low is None or quantity.high is None:
        return quantity.reason or NOT_MEASURED
    low = number(quantity.low, name).removesuffix(metric(name).unit).strip()
    return f"{low} to {number(quantity.high, name)}".replace(" ", "\N{NO-BREAK SPACE}")


def count(amount: int, noun: str, plural: str = "") -> str:
    """An amount with its noun.

    >>> count(1, "site"), count(1200, "image"), count(2, "class", "classes")
    ('1 site', '1,200 images', '2 classes')
    """
    return f"{amount:,} {noun if amount == 1 else plural or noun + 's'}"


def listing(names: Sequence[str]) -> str:
    """Names as a phrase.

    >>> listing(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def seconds(value: float | None) -> str:
    """A duration as text.

    >>> seconds(7384), seconds(75), seconds(3.21)
    ('2 h 3 min', '1 min 15 s', '3.2 s')
    """
    if value is None:
        return NOT_MEASURED
    if value < _SIXTY:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), _SIXTY)
    return f"{minutes} min {rest} s" if minutes < _SIXTY else f"{minutes // _SIXTY} h {minutes % _SIXTY} min"


def size(value: float | None) -> str:
    """A number of bytes as text.

    >>> size(950), size(1_530_000)
    ('950 B', '1.5 MB')
    """
    if value is None:
        return NOT_MEASURED
    for unit in ("B", "kB", "MB"):
        if value < _KILO:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= _KILO
    return f"{value:.1f} GB"


def headline(record: Record) -> tuple[str, ...]:
    """What was trained, how good it is and how that compares: one sentence each.

    Args:
        record: of the run.

    Returns:
        Sentences without markup; figures have two decimals here and three in the tables.
    """
    claim = () if record.privacy is None else (claim_wording.short(record.privacy, _colluding(record)),)
    return (_trained(record), _reached(record), *_compared(record), *claim)


def stamp_notice(record: Record) -> str | None:
    """The first line of a page about a run whose privacy claim does not hold; None for others."""
    if record.privacy is None or record.privacy.stamp is None:
        return None
    return f"{record.privacy.stamp}: {NO_PROMISE}"


def phantom_notice(record: Record) -> str | None:
    """The first line of a page about synthetic images; None for real ones."""
    if record.data.kind != "phantom":
        return None
    return (
        "These are synthetic phantom images, made by a computer. "
        "The figures on this page show that the software works; they say nothing about patients."
    )


def protection_notice(record: Record) -> str:
    """What privacy protection the run had, in a sentence or two."""
    if record.privacy is not None:
        follow = "" if record.privacy.stamp else " Its terms follow in the next section."
        return claim_wording.short(record.privacy, _colluding(record)) + follow
    if any("secure aggregation" in text.lower() for text in record.protection.active):
        return (
            "The server saw sums over sites only. No differential privacy was active: the sums and the trained model "
            "may reveal something about single patients."
        )
    return (
        "No differential privacy, no secure aggregation was active: whoever receives the sites' updates or the "
        "trained model may learn something about single patients."
    )


def _colluding(record: Record) -> int:
    return 0 if record.secure_aggregation is None else record.secure_aggregation.colluding


def limits(record: Record) -> tuple[str, ...]:
    """What the reader must not conclude, as far as the record tells.

    Args:
        record: of the run.

    Returns:
        One sentence each, the most serious first.
    """
    subjects = record.details.num_subjects
    few = 100
    facts = [
        (record.data.kind == "phantom", "The images are synthetic: nothing here can be carried over to patients."),
        (True, "This is a research result. It is not a medical device and no basis for treating anyone."),
        (
            not record.external,
            "The model was tested on patients from the same sources only. How it does elsewhere was not measured.",
        ),
        (
            subjects is not None and subjects < few,
            f"The test holds {count(subjects or 0, 'patient')}: the intervals are wide and the figures may change.",
        ),
        (
            True,
            (
                "Intervals describe which patients happened to be tested. They do not cover a repeated training, "
                "another scanner or another population."
            ),
        ),
        (subjects is not None and subjects == record.details.num_examples, _one_each(record)),
        (
            bool(record.test.per_subgroup) or len(record.test.per_site) > 1,
            "Many groups are compared: some will differ by chance alone.",
        ),
        (
            simulated(record),
            "The sites were simulated on one computer: a real network of hospitals adds delays and failures.",
        ),
        *_privacy_limits(record),
    ]
    return tuple(text for applies, text in facts if applies)


def _privacy_limits(record: Record) -> tuple[tuple[bool, str], ...]:
    claim = record.privacy
    return (
        (claim is None, "No statement on privacy loss can be made from this run."),
        (claim is not None and claim.stamp is not None, "The run is NOT PRIVATE: its epsilon is no promise."),
        (
            claim is not None and claim.stamp is None,
            "Epsilon is a bound that rests on the assumptions listed with it. It covers training patients alone.",
        ),
    )


def simulated(record: Record) -> bool:
    """Whether all sites ran inside one process."""
    return (record.transport or "").replace("-", "").replace("_", "").lower() == "inprocess"


def level(record: Record) -> str:
    """The intervals' level as text: "95 %"."""
    used = record.details.bootstrap
    return f"{100 * used.level:g} %" if used else "level not recorded"


def _one_each(record: Record) -> str:
    rule = f" ({record.data.subject_rule})" if record.data.subject_rule else ""
    return (
        f"Every image or volume counts as one patient here{rule}. Where a patient has several, the true intervals "
        "are wider."
    )


def _trained(record: Record) -> str:
    names = record.data.class_names
    if record.task == "classification":
        purpose = f"tells apart {listing(names)}" if names else "classifies images"
    else:
        purpose = f"outlines {listing(names[1:])}" if len(names) > 1 else "outlines structures"
    sites = len(record.data.sites)
    if not sites:
        return f"A model that {purpose} was trained."
    where = f"across {count(sites, 'site')}" if sites > 1 else "at 1 site"
    how = " that kept their images to themselves"
    if record.privacy is not None and record.privacy.mode == "central":
        how = ", whose images one curator held"
    if simulated(record):
        how = ", which were simulated on one computer"
    return f"A model that {purpose} was trained {where}{how if sites > 1 else ''}."


def _reached(record: Record) -> str:
    name = PRIMARY[record.task]
    found = record.test.metrics.get(name, Quantity())
    who = _tested(record)
    if found.value is None:
        return f"{who} its {metric(name).label} is not known: {found.reason or NOT_MEASURED}."
    span = (
        f" ({level(record)} interval {found.low:.2f} to {found.high:.2f})"
        if found.low is not None and found.high is not None
        else " (no interval)"
    )
    if name == "auc":
        meaning = f"it ranks two images of different kinds correctly {100 * found.value:.0f} times in 100"
    else:
        meaning = "1 would be a perfect overlap with the reference outline"
    return f"{who} it reached {metric(name).label} {found.value:.2f}{span}: {meaning}."


def _tested(record: Record) -> str:
    details = record.details
    whole = details.num_examples == record.data.examples.get("test")
    noun = (
        "image"
        if record.task == "classification" or (whole and len(record.model.input_shape or ()) <= _PLANE_AXES)
        else "volume"
    )
    if details.num_examples is None or details.num_subjects is None:
        return "On patients it had not seen,"
    examples = count(details.num_examples, noun)
    if details.num_examples == details.num_subjects:
        return f"On {examples} it had not seen, each counted as one patient,"
    return f"On {examples} of {count(details.num_subjects, 'patient')} it had not seen,"


def _compared(record: Record) -> tuple[str, ...]:
    name = PRIMARY[record.task]
    found = record.test.metrics.get(name, Quantity())
    central, alone = record.references.central, record.references.local_only
    parts = [
        ("pooling all data in one place", _reference(central, name)),
        ("each site training alone", _reference(alone, name)),
    ]
    known = [f"{who} gave {_difference(found, value)}" for who, value in parts if value is not None]
    missing = [who for who, value in parts if value is None]
    sentences = []
    if known and found.value is not None:
        sentences.append(_sentence("; ".join(known)))
    if missing:
        sentences.append(f"It was not compared with {' or with '.join(missing)}.")
    return tuple(sentences)


def _reference(scores: Scores | None, name: str) -> float | None:
    return scores.metrics.get(name, Quantity()).value if scores else None


def _difference(found: Quantity, reference: float) -> str:
    """``reference`` seen from ``found``: "0.95, which is 0.01 higher and inside the interval"."""
    gap = reference - (found.value or 0)
    if abs(gap) < _SAME:
        return f"{reference:.2f}, about the same"
    text = f"{reference:.2f}, {abs(gap):.2f} {'higher' if gap > 0 else 'lower'}"
    if found.low is None or found.high is None:
        return text
    return f"{text} and {'inside' if found.low <= reference <= found.high else 'outside'} that interval"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."
