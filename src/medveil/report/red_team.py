"""The section on attacks: what worked without protection, what is left of it with it, and what that does not show."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medveil.report import figures, pictures, wording
from medveil.report.attack_record import Attacked, Measured, Reached, RedTeam, Results
from medveil.report.audit import audit_blocks
from medveil.report.blocks import (
    Block,
    Bullets,
    Cell,
    Chart,
    Charts,
    Gallery,
    LegendItem,
    Panel,
    Picture,
    Prose,
    Section,
    Table,
)
from medveil.report.reading import Run

_TITLE = "Red team: what attacks get out of it"
_MOST_PICTURES = 6
_PANELS = (
    ("original", "The patient's image"),
    ("control", "Knowing nothing"),
    ("unprotected", "Unprotected"),
    ("sum", "Secure sum"),
    ("protected", "Protected"),
)
_NOT_RUN = (
    "No attack was run on this model: what it leaks was not measured. Run medveil attack on the run's folder, and make "
    "the report again."
)
_READING = (
    "Every attack is first run without protection: only where that twin works does a failure under protection mean "
    "anything. An attack that fails proves nothing about a better one; the bound holds for every attack on the same "
    "release (of membership: on the same training), and rests on the assumptions of the privacy claim. Pictures that "
    "look alike are not leakage: the column that knows nothing shows what any attacker has."
)
_PATIENTS = (
    "The figures and pictures of these attacks come from training patients, without noise: no epsilon covers them. "
    "Treat this page like the patients' other records; take this section out before the page leaves the hospitals."
)
_HYPOTHETICAL = (
    "This run has no differential privacy. Its protected figures are hypothetical: what the noise of epsilon "
    "{epsilon:g} would have done. Nothing of the kind protects this model."
)
_WHOLE_SITES = (
    "This run hides whole sites, and no single patient from the own site or from the server that adds the noise. The "
    "protected figures are hypothetical: what the noise of epsilon {epsilon:g} a patient would have done."
)
LABELS = {
    "rank1_rate": "Patients found among others",
    "recovered_rate": "Images recovered exactly",
    "median_psnr_db": "Median PSNR, dB",
    "auc": "AUC",
    "class_mix_auc": "AUC for the class mix",
    "identified_of_2": "Right one of 2 picked",
    "identified_of_16": "Right one of 16 picked",
    "identified_of_256": "Right one of 256 picked",
    "tpr_at_1e-2": "Members found at 1 % false alarms",
    "tpr_at_1e-3": "Members found at 0.1 % false alarms",
}


def red_team(run: Run) -> Section:
    """What the attacks on this run reached, or that none was tried; and what an audit of its claim found."""
    found = run.red_team
    audited = () if found is None or found.audit is None else audit_blocks(found.audit)
    if found is None or found.results is None:
        return Section("red-team", _TITLE, (Prose((_NOT_RUN,), tone="warning"), *audited))
    attacked = _attacked(found, found.results, phantom=run.record.data.kind == "phantom")
    return Section("red-team", _TITLE, (*attacked, *audited))


def _attacked(found: RedTeam, results: Results, *, phantom: bool) -> list[Block]:
    tried = [attack for attack in results.attacks if attack.unprotected is not None]
    blocks: list[Block] = [] if phantom or not tried else [Prose((_PATIENTS,), tone="warning")]
    if results.protection is None and results.reference is not None:
        epsilon = float(results.reference.get("epsilon", math.nan))
        text = _WHOLE_SITES if results.hides_whole_sites else _HYPOTHETICAL
        blocks.append(Prose((text.format(epsilon=epsilon),), tone="warning"))
    if tried:
        blocks.append(_matrix(tried))
    blocks.append(Prose((_READING,), tone="quiet"))
    blocks += [Bullets(attack.title or attack.name, attack.findings) for attack in tried if attack.findings]
    charts = [chart for attack in tried for chart in _charts(attack, found)]
    if charts:
        blocks.append(Charts(tuple(charts)))
    blocks += _galleries(tried, found)
    blocks += [_threats(tried)] if tried else []
    return blocks + _left_out(results)


def _matrix(attacks: Sequence[Attacked]) -> Table:
    columns = ("Attack", "Success is", "Unprotected", "Protected", "Knowing nothing", "Bound under protection")
    return Table(
        caption="Attack by defence",
        columns=tuple(Cell(name, number=place > 1) for place, name in enumerate(columns)),
        rows=tuple(_row(attack) for attack in attacks),
        note="Small print: 95 % intervals. The bound is that of what was attacked. Protected by: "
        + "; ".join(sorted({f"{attack.name}: {_setting(attack.protected)}" for attack in attacks if attack.protected}))
        + ".",
    )


def _row(attack: Attacked) -> tuple[Cell, ...]:
    worked = "" if attack.succeeded_unprotected else "did not work on this model: the next column shows nothing"
    bound = None if attack.protected is None else attack.protected.bound
    return (
        Cell(attack.title or attack.name, hint=worked),
        Cell(label(attack.success)),
        _cell(attack.unprotected, attack.success),
        _cell(attack.protected, attack.success),
        _cell(attack.control, attack.success),
        Cell("none" if bound is None else _number(bound, attack.success), number=True),
    )


def label(figure: str) -> str:
    """A figure's name for readers."""
    return LABELS.get(figure, figure.replace("_", " ").capitalize())


def _cell(reached: Reached | None, figure: str) -> Cell:
    measured = None if reached is None else reached.figures.get(figure)
    if reached is None or measured is None or measured.value is None:
        return Cell(wording.NOT_MEASURED, number=True)
    hint = _interval(measured, figure)
    shade = round(100 * measured.value) if _is_share(figure) and 0 <= measured.value <= 1 else None
    return Cell(_number(measured.value, figure), hint=hint, shade=shade, number=True)


def _setting(reached: Reached | None) -> str:
    if reached is None:
        return ""
    noise, alone = reached.condition.noise_multiplier, reached.condition.epsilon_of_release
    parts = [reached.condition.name, f"noise multiplier {noise:.3g}" if noise else ""]
    parts.append(f"epsilon {alone:.3g} of the attacked release" if alone else "")
    return ", ".join(filter(None, parts))


def _is_share(figure: str) -> bool:
    return not figure.endswith("_db")


def _number(value: float, figure: str) -> str:
    return f"{value:.3f}" if _is_share(figure) else f"{value:.1f} dB"


def _interval(measured: Measured, figure: str) -> str:
    if measured.low is None or measured.high is None:
        return ""
    return f"{_number(measured.low, figure)} to {_number(measured.high, figure)}"


def _charts(attack: Attacked, found: RedTeam) -> list[Chart]:
    charts = []
    points = [
        (reached.condition.epsilon_of_release, reached.figures[attack.success], reached.bound)
        for reached in attack.curve
        if reached.condition.epsilon_of_release and attack.success in reached.figures
    ]
    line = [(epsilon, measured.value) for epsilon, measured, _ in points if epsilon and measured.value is not None]
    if len(line) > 1:
        bounds = [(epsilon, bound) for epsilon, _, bound in points if epsilon and bound is not None]
        nothing = None if attack.control is None else attack.control.figures.get(attack.success)
        level = None if nothing is None else nothing.value
        charts.append(_over_epsilon(attack, sorted(line), sorted(bounds), level))
    alarms = found.pictured(attack.name, "roc_false_positive_rates")
    roc = {kind: found.pictured(attack.name, f"roc_{kind}") for kind in ("unprotected", "protected", "control")}
    drawn = {kind: curve for kind, curve in roc.items() if curve is not None}
    if alarms is not None and drawn:
        charts.append(_roc(attack, alarms, drawn))
    return charts


def _over_epsilon(
    attack: Attacked, line: list[tuple[float, float]], bounds: list[tuple[float, float]], level: float | None
) -> Chart:
    text = "; ".join(f"epsilon {epsilon:.3g}: {_number(value, attack.success)}" for epsilon, value in line)
    legend = [LegendItem("This attack", "main")]
    legend += [LegendItem("The most any attack can do", "second", dashed=True)] if bounds else []
    legend += [LegendItem("Knowing nothing", "muted", dashed=True)] if level is not None else []
    svg = figures.over_epsilon(
        line, bounds, level, label=label(attack.success), name=f"attack-{attack.name}", share=_is_share(attack.success)
    )
    title = f"{attack.title or attack.name}: one release, by its epsilon"
    return Chart(title, f"{label(attack.success)}. {text}.", svg, tuple(legend))


def _roc(attack: Attacked, alarms: NDArray[np.float32], curves: dict[str, NDArray[np.float32]]) -> Chart:
    roles = {"unprotected": ("Unprotected", "main"), "protected": ("Protected", "second"), "control": ("Null", "third")}
    lines = [
        (roles[kind][1], [(float(x), float(y)) for x, y in zip(alarms, found, strict=True) if x > 0 and y > 0])
        for kind, found in curves.items()
    ]
    legend = tuple(LegendItem(roles[kind][0], roles[kind][1], dashed=kind == "protected") for kind in curves)
    return Chart(
        f"{attack.title or attack.name}: members found against false alarms",
        "Both axes are logarithmic: what counts is the left end, where the attacker accuses almost nobody wrongly.",
        figures.log_roc([line for line in lines if line[1]], name=f"roc-{attack.name}"),
        (*legend, LegendItem("Guessing", "muted", dashed=True)),
    )


def _galleries(attacks: Sequence[Attacked], found: RedTeam) -> list[Block]:
    blocks: list[Block] = []
    for attack in attacks:
        items = _pictures(attack, found)
        if items:
            blocks.append(Prose((f"{attack.title or attack.name}: image by image",)))
            blocks.append(Gallery(tuple(items)))
    return blocks


def _pictures(attack: Attacked, found: RedTeam) -> list[Picture]:
    shown = [(name, title, found.pictured(attack.name, name)) for name, title in _PANELS]
    there = [(name, title, images) for name, title, images in shown if images is not None and images.ndim == 3]  # noqa: PLR2004 - (images, rows, columns)
    if not there or there[0][0] != "original":
        return []
    rows = {"unprotected": attack.unprotected, "protected": attack.protected, "control": attack.control}
    titles = dict(_PANELS)
    items = []
    for place in range(min(_MOST_PICTURES, *(len(images) for _, _, images in there))):
        panels = tuple(
            Panel(pictures.grey_png(images[place]), f"{title}, image {place + 1}", title) for _, title, images in there
        )
        lines = [
            f"{titles[name]}: {said}"
            for name, reached in rows.items()
            if reached is not None and (said := _of_image(reached, place))
        ]
        items.append(Picture(panels, tuple(lines)))
    return items


def _of_image(reached: Reached, place: int) -> str:
    if place >= len(reached.images):
        return ""
    row = reached.images[place]
    psnr, rank = row.get("psnr_db"), row.get("rank")
    parts = [f"{psnr:.1f} dB"] if isinstance(psnr, int | float) else []
    parts += [f"rank {rank:,}"] if isinstance(rank, int) else []
    return ", ".join(parts)


def _threats(attacks: Sequence[Attacked]) -> Table:
    rows = [(attack, attack.threat_model) for attack in attacks if attack.threat_model is not None]
    return Table(
        caption="Who attacks, with what",
        columns=(Cell("Attack"), Cell("Adversary"), Cell("Sees"), Cell("Knows"), Cell("Does")),
        rows=tuple(
            (Cell(attack.title or attack.name), Cell(who.adversary), Cell(who.sees), Cell(who.knows), Cell(who.does))
            for attack, who in rows
        ),
    )


def _left_out(results: Results) -> list[Block]:
    resisted = tuple(text for attack in results.attacks for text in attack.resisted)
    untried = tuple(f"{attack.name}: {attack.not_tried}" for attack in results.attacks if attack.not_tried)
    blocks: list[Block] = []
    if resisted:
        blocks.append(Bullets("Tried, and did not work here", resisted))
    if untried:
        blocks.append(Bullets("Not tried on this run", untried, tone="bad"))
    effort = f"Effort: {results.effort}, {wording.seconds(results.seconds)}."
    return [*blocks, Prose((effort,), tone="quiet")]
