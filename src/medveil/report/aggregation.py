"""The section on secure aggregation: what the server saw and did not, who had to take part, what it cost."""

from medveil.report import claim_wording, wording
from medveil.report.blocks import Block, Bullets, Cell, Facts, Prose, Section, Table
from medveil.report.reading import Run
from medveil.report.record import Record
from medveil.report.secure_sums import SecureSums
from medveil.report.wording import NOT_MEASURED

_FLOAT_BYTES = 4
_FEW = 2


def secure_aggregation(run: Run) -> Section | None:
    """What the secure sums hid and cost; None where there were none."""
    sums = run.record.secure_aggregation
    if sums is None:
        return None
    blocks: tuple[Block, ...] = (
        Prose((_lead(sums),), tone="lead"),
        *(Prose((text,), tone="warning") for text in warnings(sums)),
        Bullets("The server saw", _seen(run.record, sums)),
        Bullets("The server did not see", _hidden(run.record, sums), tone="good"),
        _facts(sums),
        *([_groups(sums)] if len(sums.groups) > 1 else []),
        _sites(run.record, sums),
        *([Prose((_SIMULATED,), tone="quiet")] if wording.simulated(run.record) else []),
    )
    return Section("secure-aggregation", "Secure aggregation: what the server saw", blocks)


_SIMULATED = (
    "All hospitals ran in one process here, which made their keys itself: the run shows what the protocol does and "
    "what it costs. Between real hospitals each makes its own identity key, and the others must know it beforehand."
)


def warnings(sums: SecureSums) -> tuple[str, ...]:
    """What makes the sums hide less, or the model worse, than a reader would expect."""
    groups, opened = len(sums.groups), sums.sums_opened
    facts = (
        (
            groups > 1,
            (
                f"The server saw the sums of {groups} groups, one by one: a hospital hides only behind those of its "
                f"own group, of which the smallest has {min(map(len, sums.groups))}."
            ),
        ),
        (
            groups > _FEW and sums.combine == "median",
            (
                "The median over groups limits what a hospital that cheats can do. It is no privacy protection, and it "
                "needed the groups' sums one by one."
            ),
        ),
        (
            groups <= _FEW and sums.combine == "median",
            "The median of so few groups is their mean: it does not limit what a hospital that cheats can do.",
        ),
        (
            sums.fewest_honest <= _FEW,
            (
                "The smallest sum that may be opened holds two hospitals besides those that may collude: each of the "
                "two hides behind one other only, which can subtract its own part."
            ),
        ),
        (
            bool(sums.clipped),
            (
                f"{wording.count(sums.clipped or 0, 'value')} that hospitals sent lay beyond the range "
                f"±{sums.value_range or 0:g} and were cut to it: the model may be worse for it. Raise "
                "privacy.secure_aggregation.value_range."
            ),
        ),
        (
            sums.refused_groups > 0,
            (
                f"{wording.count(sums.refused_groups, 'sum')} of {opened:,} were refused: larger than the plan allows. "
                "Either the limit is too low, or a hospital sent what it should not."
            ),
        ),
    )
    return tuple(text for applies, text in facts if applies)


def _lead(sums: SecureSums) -> str:
    where = claim_wording.hospitals(len(sums.sites))
    if len(sums.groups) > 1:
        where = f"{len(sums.groups)} groups of {where} in all"
    return (
        f"The server opened {wording.count(sums.sums_opened, 'sum')} over {where}, and saw nothing that a single "
        "hospital had contributed to them."
    )


def _seen(record: Record, sums: SecureSums) -> tuple[str, ...]:
    whose = "the hospitals that took part" if len(sums.groups) == 1 else "those of each group that took part"
    noisy = record.privacy is not None and record.privacy.mode == "distributed"
    if noisy:
        added = "clipped, noisy steps of training"
    elif record.privacy is not None:
        added = "noisy changes of the weights"
    else:
        added = "changes of the weights, training losses and numbers of examples"
    chosen = record.details.threshold_source or ""
    binned = "validation" in chosen and "in secret" in chosen
    return (
        f"In every round, the sum over {whose} of their {added}.",
        (
            "In rounds that were validated, the sum over them of their validation scores, weighted by the number of "
            "validation images; it has no noise."
        ),
        "Which hospitals took part in which round, when each answered, and how long its messages were.",
        *(
            ("Once, at the end, the sum of their counts of validation predictions, to choose the decision threshold.",)
            if binned
            else ()
        ),
    )


def _hidden(record: Record, sums: SecureSums) -> tuple[str, ...]:
    noisy = record.privacy is not None and record.privacy.mode == "distributed"
    own = "step" if noisy else "change of the weights"
    condition = (
        "as long as no hospital tells it what it knows"
        if sums.colluding == 0
        else f"even with up to {claim_wording.hospitals(sums.colluding, 'other')} on its side"
    )
    return (
        f"Any one hospital's {own}, {condition}.",
        (
            "Any one hospital's training loss, validation scores or number of examples. (This page lists patients by "
            "hospital because whoever made the record knew them, not because the sums told.)"
        ),
        f"A sum over fewer hospitals than {_fewest(sums)}, whoever it said was missing.",
    )


def _fewest(sums: SecureSums) -> str:
    if len(sums.groups) == 1:
        return f"{sums.min_included[0]} of {len(sums.sites)}"
    return f"{min(sums.min_included)} of a group"


def _facts(sums: SecureSums) -> Facts:
    several = len(sums.groups) > 1
    items = [
        ("Hospitals", f"{len(sums.sites):,} in {len(sums.groups)} groups" if several else f"{len(sums.sites):,}"),
        ("Colluding with the server tolerated", f"{sums.colluding:,}"),
    ]
    if several:
        items.append(("Groups are combined by", sums.combine))
        items.append(("Group sums refused as too large", f"{sums.refused_groups:,}"))
    else:
        size, least = len(sums.sites), sums.min_included[0]
        items.append(("Needed to open a sum (threshold)", f"{sums.thresholds[0]} of {size}"))
        items.append(("Drop-outs survived in a round", f"up to {size - least:,}"))
    items += [
        ("Drop-outs that happened", _happened(sums)),
        ("Modulus", f"2 to the power of {sums.modulus_bits}"),
        ("Resolution", f"{sums.resolution:.3g}"),
    ]
    if sums.value_range is not None:
        cut = "not counted: the count would have no noise" if sums.clipped is None else f"{sums.clipped:,}"
        items += [("Range of a value", f"±{sums.value_range:g}"), ("Values cut to the range", cut)]
    return Facts(tuple(items))


def _happened(sums: SecureSums) -> str:
    total = sum(sums.dropped.values())
    if not total:
        return "none"
    who = wording.count(sum(1 for times in sums.dropped.values() if times), "hospital")
    return f"{total:,}, by {who}"


def _groups(sums: SecureSums) -> Table:
    return Table(
        caption="The groups",
        columns=(
            Cell("Hospitals"),
            Cell("Needed to open a sum", number=True),
            Cell("Drop-outs survived", number=True),
        ),
        rows=tuple(
            (
                Cell(wording.listing(names)),
                Cell(f"{threshold} of {len(names)}", number=True),
                Cell(f"{len(names) - least:,}", number=True),
            )
            for names, threshold, least in zip(sums.groups, sums.thresholds, sums.min_included, strict=True)
        ),
    )


def _sites(record: Record, sums: SecureSums) -> Table:
    empty = Cell("\N{EN DASH}", number=True)
    clear = clear_bytes(record)
    note = "Hospitals work at the same time, so their times must not be added. "
    if clear is not None:
        note += (
            f"In the clear each would have sent at least {wording.size(clear)}: 4 bytes a parameter and round, without "
            "message headers."
        )
    return Table(
        caption="What the protocol took",
        columns=(
            Cell("Where"),
            Cell("Missing in sums", number=True),
            Cell("Time", number=True),
            Cell("Share of the run", number=True),
            Cell("Sent", number=True),
            Cell("Against sending in the clear", number=True),
        ),
        rows=(
            *(
                (
                    Cell(site),
                    Cell(f"{sums.dropped.get(site, 0):,}", number=True),
                    *_time(sums.site_seconds.get(site), record.cost.seconds),
                    *_sent(record.cost.bytes_sent_per_site.get(site), clear),
                )
                for site in sums.sites
            ),
            (Cell("Server"), empty, *_time(sums.server_seconds, record.cost.seconds), empty, empty),
        ),
        note=note.strip(),
    )


def clear_bytes(record: Record) -> int | None:
    """Bytes of one site's updates as 32-bit floats over all rounds; None where the record does not say."""
    parameters, rounds = record.model.parameters, record.cost.rounds
    return None if parameters is None or rounds is None else _FLOAT_BYTES * parameters * rounds


def _time(took: float | None, whole: float | None) -> tuple[Cell, Cell]:
    share = NOT_MEASURED if took is None or not whole else f"{100 * took / whole:.1f} %"
    return Cell(wording.seconds(took), number=True), Cell(share, number=True)


def _sent(sent: int | None, clear: int | None) -> tuple[Cell, Cell]:
    ratio = NOT_MEASURED if sent is None or not clear else f"{sent / clear:.2f} times"
    return Cell(wording.size(sent), number=True), Cell(ratio, number=True)
