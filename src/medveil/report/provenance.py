"""Sections about where the figures come from: protection, data, training, cost, versions and limits."""

from medveil.report import wording
from medveil.report.blocks import Block, Bullets, Cell, Facts, Prose, Section, Strip, Table
from medveil.report.reading import Run
from medveil.report.record import Cost, Data, Duplicates
from medveil.report.wording import NOT_MEASURED

_SPLITS = ("train", "validation", "test")


def protection(run: Run) -> Section:
    """What stood between a curious party and the images, and what did not."""
    record = run.record
    promised = record.privacy is not None and not record.privacy.stamp
    blocks = (
        Prose((wording.protection_notice(record),), tone="plain" if promised else "warning"),
        Bullets("Active", record.protection.active or ("Nothing recorded",), tone="good"),
        Bullets("Not active", record.protection.inactive or ("Nothing recorded",), tone="bad"),
    )
    return Section("protection", "What was protected, and what was not", blocks)


def training(run: Run) -> Section:
    """The network and how it was trained."""
    model = run.record.model
    shape = " x ".join(map(str, model.input_shape)) if model.input_shape else NOT_MEASURED
    network = (
        ("Network", model.kind or NOT_MEASURED),
        ("Parameters", NOT_MEASURED if model.parameters is None else f"{model.parameters:,}"),
        ("Input (channels x size)", shape),
    )
    blocks = (Facts(network), _facts(run.record.training))
    return Section("training", "Model and training", tuple(block for block in blocks if block.items))


def cost(run: Run) -> Section:
    """Time, memory and traffic."""
    spent = run.record.cost
    memory = None if spent.peak_memory_mb is None else spent.peak_memory_mb * 1e6
    items = (
        ("Time, all parts", wording.seconds(spent.seconds)),
        ("Peak memory", wording.size(memory)),
        ("Rounds", NOT_MEASURED if spent.rounds is None else f"{spent.rounds:,}"),
        ("Device", spent.device or NOT_MEASURED),
        ("Threads", NOT_MEASURED if spent.threads is None else f"{spent.threads}"),
    )
    tables = (_parts(spent), _traffic(spent))
    return Section("cost", "What it cost", (Facts(items), *(table for table in tables if table is not None)))


def data(run: Run) -> Section:
    """Counts, files that were left out and why, duplicates, licence and citation."""
    used = run.record.data
    about = (
        ("Data set", used.name),
        ("Kind", "synthetic phantom images" if used.kind == "phantom" else "real images"),
        ("What counts as a patient", used.subject_rule or "not recorded"),
        ("Licence", used.licence or "not recorded"),
        ("Citation", used.citation or "not recorded"),
        *_duplicate_facts(used.duplicates),
    )
    blocks = (Facts(about), _splits(used), _sites(used), _rejected(used))
    return Section("data", "The data", blocks)


def reproduce(run: Run) -> Section:
    """What is needed to get the same figures again."""
    record = run.record
    items = (
        ("Run", record.name),
        ("Plan", record.plan_hash or NOT_MEASURED),
        ("Architecture", record.model.architecture_hash or NOT_MEASURED),
        ("medveil", record.medveil_version or NOT_MEASURED),
        ("Created", record.created or NOT_MEASURED),
        ("Transport", record.transport or NOT_MEASURED),
        *((f"File: {name}", path) for name, path in record.artifacts.items()),
    )
    text = (
        "The run folder holds the resolved plan. The same plan, the same data and the same version of medveil give the "
        "same figures on the same kind of machine. Compare the hash of the plan before you compare figures."
    )
    return Section("reproduce", "How to repeat it", (Prose((text,)), Facts(items)))


def limits(run: Run) -> Section:
    """What must not be concluded."""
    return Section("limits", "What these figures do not say", (Bullets("", wording.limits(run.record)),))


def _facts(values: dict[str, object]) -> Facts:
    return Facts(tuple((key.replace("_", " ").capitalize(), _text(value)) for key, value in values.items()))


def _text(value: object) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value in ("", [], {}):
        return "none"
    if isinstance(value, dict):
        ordered = sorted(value.items(), key=lambda item: item[0] != "kind")
        pairs = ((key.replace("_", " "), _text(part)) for key, part in ordered)
        return ", ".join(text if key == "kind" else f"{key} {text}" for key, text in pairs)
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _parts(spent: Cost) -> Table | None:
    if not spent.seconds_by_part:
        return None
    longest = max(spent.seconds_by_part.values()) or 1.0
    return Table(
        caption="Where the time went",
        columns=(Cell("Part"), Cell("Time", number=True), Cell("Share of the longest")),
        rows=tuple(
            (
                Cell(part.replace("_", " ")),
                Cell(wording.seconds(took), number=True),
                Cell("", strip=Strip(value=-1, low=0, high=round(100 * took / longest, 2), main=True)),
            )
            for part, took in spent.seconds_by_part.items()
        ),
    )


def _traffic(spent: Cost) -> Table | None:
    sites = sorted(spent.bytes_sent_per_site.keys() | spent.bytes_received_per_site.keys())
    if not sites:
        return None
    return Table(
        caption="Traffic by site, whole run",
        columns=(Cell("Site"), Cell("Sent", number=True), Cell("Received", number=True)),
        rows=tuple(
            (
                Cell(site),
                Cell(wording.size(spent.bytes_sent_per_site.get(site)), number=True),
                Cell(wording.size(spent.bytes_received_per_site.get(site)), number=True),
            )
            for site in sites
        ),
    )


def _splits(used: Data) -> Table:
    return Table(
        caption="Patients and images in each part",
        columns=(Cell("Part"), Cell("Patients", number=True), Cell("Images", number=True)),
        rows=tuple(
            (Cell(split), _amount(used.subjects.get(split)), _amount(used.examples.get(split))) for split in _SPLITS
        ),
    )


def _sites(used: Data) -> Block:
    if not used.sites:
        return Prose((f"Data by site: {NOT_MEASURED}.",), tone="quiet")
    if all(site.examples is None for site in used.sites):
        names = ", ".join(site.site for site in used.sites)
        return Prose((f"{names}. What each brought is not told: the plan lets sums over sites leave them, no more.",))
    labels = sorted({label for site in used.sites for label in site.label_counts})
    headings = ("Patients", "Images", *labels)
    return Table(
        caption="What each site brought to the training",
        columns=(Cell("Site"), *(Cell(heading, number=True) for heading in headings)),
        rows=tuple(
            (
                Cell(site.site),
                _amount(site.subjects),
                _amount(site.examples),
                *(_amount(site.label_counts.get(label, 0)) for label in labels),
            )
            for site in used.sites
        ),
    )


def _rejected(used: Data) -> Block:
    if not used.rejected:
        return Prose(("No file was left out.",), tone="quiet")
    return Table(
        caption="Files that were left out",
        columns=(Cell("Reason"), Cell("Files", number=True)),
        rows=tuple((Cell(row.reason, hint=row.detail), _amount(row.count)) for row in used.rejected),
    )


def _duplicate_facts(found: Duplicates | None) -> tuple[tuple[str, str], ...]:
    if found is None:
        return (("Identical images", NOT_MEASURED),)
    counts = (
        ("across parts", found.across_splits),
        ("within a part", found.within_splits),
        ("dropped", found.dropped),
    )
    text = ", ".join(f"{NOT_MEASURED if n is None else f'{n:,}'} {where}" for where, n in counts)
    return (("Identical images", f"{text} (policy: {found.policy or 'not recorded'})"),)


def _amount(value: int | None) -> Cell:
    return Cell(NOT_MEASURED if value is None else f"{value:,}", number=True)
