"""What an audit of the privacy claim found, as a part of the section on attacks."""

from medveil.report.attack_record import Audited, AuditedPart
from medveil.report.blocks import Block, Bullets, Cell, Prose, Table

_HOLDS = "Audit: what was measured is compatible with the claimed epsilon."
_BROKEN = "AUDIT FAILED: what was measured contradicts the claimed epsilon. Do not trust this run's privacy claim."


def audit_blocks(audit: Audited) -> tuple[Block, ...]:
    """The verdict, lower bounds beside claims, and the components of the step."""
    broken = audit.verdict != "consistent"
    blocks: list[Block] = [Prose((_BROKEN,), tone="stamp") if broken else Prose((_HOLDS,))]
    if audit.violations:
        blocks.append(Bullets("Against the claim", audit.violations, tone="bad"))
    details = audit.details
    rows = (
        _row(f"Training, {details.one_run.canaries or 0:,} canaries, one run", details.one_run),
        _row("One step that a patient takes part in", details.one_step),
    )
    blocks.append(
        Table(
            caption="Epsilon, measured with canaries",
            columns=(Cell("What"), Cell("Claimed", number=True), Cell("At least", number=True)),
            rows=rows,
            note=f"Lower bounds, each with {100 * audit.confidence:g} % confidence. A bound below the claim is what a "
            "right step gives, not a better epsilon.",
        )
    )
    blocks.append(
        Table(
            caption="Components of the private step",
            columns=(Cell("Component"), Cell("Claimed", number=True), Cell("Measured", number=True), Cell("Verdict")),
            rows=tuple(
                (
                    Cell(name.capitalize()),
                    Cell(_figure(part.claimed), number=True),
                    Cell(_figure(part.measured), number=True),
                    Cell("as claimed" if part.passed else "FAILED: " + ", ".join(part.failed)),
                )
                for name, part in audit.components.items()
            ),
            note=audit.caveat,
        )
    )
    return tuple(blocks)


def _row(what: str, part: AuditedPart) -> tuple[Cell, ...]:
    bound = "no finite one" if part.lower_bound is None else f"{part.lower_bound:.2f}"
    return Cell(what), Cell(f"{part.claimed_epsilon:.2f}", number=True), Cell(bound, number=True)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
