"""The section on privacy: what is promised, to whom, on what assumptions, and what it means for a patient.

Its parts follow NIST SP 800-226 (2025): the unit, the parameters, the trust model, composition, and what stays outside.
"""

import math

from medveil.report import claim_wording, figures, trust
from medveil.report.blocks import Block, Bullets, Cell, Chart, Charts, Facts, LegendItem, Prose, Section, Table
from medveil.report.claim import Claim, LedgerState, Meaning, TradeOff
from medveil.report.reading import Run
from medveil.report.secure_sums import SecureSums
from medveil.study.card import NOTHING_PROMISED, UNITS, delta_text, epsilon_text, one_in, percent_text

_TITLE = "Privacy: what the model may reveal"
_HEAD_LENGTH = 12
_DOUBTS = "not "


def privacy(run: Run) -> Section:
    """What the run promises about the people whose images were trained on; that it promises nothing where it does."""
    claim, sums = run.record.privacy, run.record.secure_aggregation
    if claim is None:
        return Section("privacy", _TITLE, (Prose((NOTHING_PROMISED,), tone="warning"),))
    shared = sums if claim.mode == "distributed" else None
    blocks = _stamped(claim, shared, claim.stamp) if claim.stamp else _promised(claim, shared)
    return Section("privacy", _TITLE, blocks)


def _promised(claim: Claim, shared: SecureSums | None) -> tuple[Block, ...]:
    return (
        Prose((claim_wording.sentence(claim, 0 if shared is None else shared.colluding),), tone="lead"),
        *_warning(claim),
        *_shared(claim, shared),
        _guarantee(claim),
        _how(claim),
        *_against(claim),
        _composition(claim),
        Prose((claim_wording.reading(claim), claim_wording.TIERS)),
        _charts(claim),
        _attacks(claim),
        _reconstruction(claim),
        Bullets("It rests on this", claim.assumptions),
        Bullets("It does not cover", claim.out_of_scope, tone="bad"),
        _ledgers(claim.ledgers),
    )


def _shared(claim: Claim, shared: SecureSums | None) -> tuple[Block, ...]:
    """Where hospitals share out the noise, epsilon depends on who helps the server."""
    return () if shared is None else (trust.two_epsilons(claim, shared), *trust.trust_table(claim, shared))


def _stamped(claim: Claim, shared: SecureSums | None, stamp: str) -> tuple[Block, ...]:
    """What was calculated, without what it would mean: no bound on any attack holds for such a run."""
    return (
        Prose((stamp, *claim.stamp_reasons), tone="stamp"),
        Prose((claim_wording.sentence(claim),)),
        *_shared(claim, shared),
        _guarantee(claim),
        _how(claim),
        _composition(claim),
        _ledgers(claim.ledgers),
    )


def _warning(claim: Claim) -> tuple[Block, ...]:
    text = claim_wording.warning(claim)
    return () if text is None else (Prose((text,), tone="warning"),)


def _guarantee(claim: Claim) -> Table:
    delta = f"{delta_text(claim.delta)} ({one_in(claim.delta)})"
    rows = (
        ("Epsilon", epsilon_text(claim.epsilon), "for the party that has it worst, everything below composed"),
        *([] if claim.mode == "distributed" else _against_parties(claim)),
        ("Delta", delta, "how far the guarantee may be missed"),
        ("Unit", UNITS[claim.unit], "whose presence is to be hidden"),
        ("Neighbouring data sets", claim_wording.neighbours(claim), claim.relation),
        ("Trusted", claim_wording.trusted(claim), "sees more than the guarantee covers"),
    )
    return Table(
        caption="As calculated; no promise for this run" if claim.stamp else "The guarantee",
        columns=(Cell("What"), Cell("Value")),
        rows=tuple((Cell(term, hint=hint), Cell(value)) for term, value, hint in rows),
        note="Epsilons are rounded up, and so is every bound on an attack.",
    )


def _against_parties(claim: Claim) -> list[tuple[str, str, str]]:
    server = "no promise: it is trusted" if claim.epsilon_server is None else epsilon_text(claim.epsilon_server)
    insider = "not known" if claim.epsilon_insider is None else epsilon_text(claim.epsilon_insider)
    return [
        ("Epsilon against the server", server, "which coordinates the training"),
        ("Epsilon against other parties of the training", insider, "who also know what they sent themselves"),
    ]


def _how(claim: Claim) -> Facts:
    target = "none: the noise was given" if claim.epsilon_target is None else f"{claim.epsilon_target:g}"
    cross_check = "not known for these releases" if claim.epsilon_rdp is None else epsilon_text(claim.epsilon_rdp)
    steps = f"{claim.steps:,}"
    if claim.steps != claim.steps_planned:
        steps += f" ({claim.steps_planned:,} planned)"
    return Facts(
        (
            ("Noise multiplier", f"{claim.noise_multiplier:.4g}"),
            ("Sampling rate", f"{claim.sampling_rate:g}"),
            ("Noisy steps charged", steps),
            ("Clip norm", f"{claim.l2_clip_norm:g} ({claim.clipping})"),
            ("Epsilon aimed at", target),
            ("Accountant", claim.accountant),
            ("Cross-check: epsilon by Rényi DP", cross_check),
        )
    )


def _against(claim: Claim) -> tuple[Block, ...]:
    doubts = tuple(text for text in claim.holds_against if text.lower().startswith(_DOUBTS))
    holds = tuple(text for text in claim.holds_against if text not in doubts)
    return (
        Bullets("It holds against", holds, tone="good"),
        *((Bullets("It does not hold against", _without_not(doubts), tone="bad"),) if doubts else ()),
    )


def _without_not(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Under a heading that says "not", the word itself would turn the sentence round."""
    bare = (text[len(_DOUBTS) :] for text in texts)
    return tuple(text[:1].upper() + text[1:] for text in bare)


def _composition(claim: Claim) -> Table:
    together = (Cell("All together"), Cell("composed"), Cell(epsilon_text(claim.epsilon), number=True))
    return Table(
        caption="What touched the data",
        columns=(Cell("Part"), Cell("Mechanism"), Cell("Epsilon alone", number=True)),
        rows=(
            *(
                (
                    Cell(release.what),
                    Cell(claim_wording.mechanism(release.event)),
                    Cell(epsilon_text(release.epsilon), number=True),
                )
                for release in claim.composition
            ),
            together,
        ),
        note="Parts are composed by the accountant: the whole may cost less than the sum.",
    )


def _charts(claim: Claim) -> Charts:
    curve = claim.meaning.trade_off
    middle = len(curve.fpr) // 2
    description = (
        "The best that any attack can do. At every share of false alarms it misses at least so many of those who took "
        f"part: at {percent_text(curve.fpr[middle])} false alarms, {math.floor(100 * curve.fnr[middle])} % or more; "
        f"guessing misses {percent_text(1 - curve.fpr[middle])}."
    )
    legend = (LegendItem("Best possible attack", "main"), LegendItem("Guessing", "muted", dashed=True))
    return Charts(
        (Chart("Who took part?", description, figures.trade_off(_all_points(claim.meaning), name="trade-off"), legend),)
    )


def _all_points(meaning: Meaning) -> TradeOff:
    """The curve with the rates that are told apart: between far points a chord would lie above the true curve."""
    curve = meaning.trade_off
    points = dict(zip(curve.fpr, curve.fnr, strict=True)) | {rate.fpr: 1 - rate.tpr for rate in meaning.tpr_at_fpr}
    return TradeOff(fpr=tuple(points), fnr=tuple(points.values()))


def _attacks(claim: Claim) -> Table:
    return Table(
        caption=f"Finding out whether {UNITS[claim.unit]} took part",
        columns=(
            Cell("False alarms allowed"),
            Cell("Found by the best attack, at most", number=True),
            Cell("Found by guessing", number=True),
        ),
        rows=tuple(
            (
                Cell(percent_text(rate.fpr)),
                Cell(percent_text(rate.tpr), number=True),
                Cell(percent_text(rate.fpr), number=True),
            )
            for rate in claim.meaning.tpr_at_fpr
        ),
        note="The attacker may know all other data, the plan and every weight that was published.",
    )


def _reconstruction(claim: Claim) -> Table:
    return Table(
        caption=f"Rebuilding the data of {UNITS[claim.unit]}",
        columns=(Cell("Chance without the model"), Cell("Chance with the model, at most", number=True)),
        rows=tuple(
            (Cell(one_in(row.prior)), Cell(percent_text(row.bound), number=True))
            for row in claim.meaning.reconstruction
        ),
        note="The chance is that of success as the attacker defines it (Hayes et al. 2023, arXiv 2302.07225).",
    )


def _ledgers(ledgers: dict[str, LedgerState] | None) -> Block:
    if not ledgers:
        return Prose(("Privacy ledgers: none were kept. Other runs on the same data are not counted.",), tone="quiet")
    return Table(
        caption="What each party's privacy ledger says",
        columns=(
            Cell("Ledger"),
            Cell("Epsilon of all runs", number=True),
            Cell("Cap", number=True),
            Cell("Runs", number=True),
            Cell("Entries", number=True),
            Cell("Head"),
        ),
        rows=tuple(
            (
                Cell(site),
                Cell(_all_runs(ledger), number=True),
                Cell("none" if ledger.cap is None else f"{ledger.cap:g}", number=True),
                Cell(f"{ledger.runs:,}", number=True),
                Cell(f"{ledger.entries:,}", number=True),
                Cell(ledger.head[:_HEAD_LENGTH]),
            )
            for site, ledger in ledgers.items()
        ),
        note="Epsilon of all runs that this ledger holds on the same data. The head is the start of the chain's last "
        "hash: a ledger that was changed later has another.",
    )


def _all_runs(ledger: LedgerState) -> str:
    return "not known" if ledger.epsilon_all_runs is None else epsilon_text(ledger.epsilon_all_runs)
