"""With noise that hospitals share out: epsilon against the server alone and with helpers, and who sees what."""

from medveil.report import claim_wording
from medveil.report.blocks import Block, Cell, Table
from medveil.report.claim import Claim
from medveil.report.secure_sums import SecureSums
from medveil.study.card import delta_text, epsilon_text

_NO_PROMISE = "no promise"


def two_epsilons(claim: Claim, sums: SecureSums) -> Table:
    """Epsilon against the server alone beside epsilon against the server with as many hospitals as are tolerated."""
    alone = claim.epsilon_server
    helped = claim.epsilon_insider
    rows = [
        (
            Cell(f"Epsilon at delta {delta_text(claim.delta)}"),
            Cell(_epsilon(alone), number=True),
            Cell(_epsilon(helped), number=True),
        )
    ]
    if not claim.stamp:
        rows.append(
            (
                Cell("What happens to somebody may be so many times as probable"),
                Cell(_factor(alone), number=True),
                Cell(_factor(helped), number=True),
            )
        )
    helpers = claim_wording.hospitals(max(sums.colluding, 1))
    return Table(
        caption="As calculated against whom; no promise for this run" if claim.stamp else "Against whom",
        columns=(
            Cell("What"),
            Cell("The server alone", number=True),
            Cell(f"The server with {helpers} on its side", number=True),
        ),
        rows=tuple(rows),
        note=_why(sums.colluding),
    )


def trust_table(claim: Claim, sums: SecureSums) -> tuple[Block, ...]:
    """Who sees what, and which epsilon holds against them; none for a stamped claim."""
    if claim.stamp:
        return ()
    tolerated = sums.colluding
    alone, inside = _epsilon(claim.epsilon_server), _epsilon(claim.epsilon_insider)
    rows = (
        ("Anyone who sees the model after every step", "the published weights", alone),
        ("The server", f"sums over at least {min(sums.min_included)} hospitals, and the published weights", alone),
        *(
            (
                (
                    f"Up to {claim_wording.hospitals(tolerated, 'other')}, with the server or without it",
                    "the same, with their own share of the noise subtracted",
                    inside,
                ),
            )
            if tolerated
            else ()
        ),
        (
            f"More than {claim_wording.hospitals(tolerated, 'other')} together" if tolerated else "Another hospital",
            "the same, with more of the noise subtracted" if tolerated else "the same, with its own noise subtracted",
            f"{_NO_PROMISE}: larger than the above" if tolerated else inside,
        ),
        ("The patient's own hospital", "the images, the labels and its own sums without noise", _NO_PROMISE),
    )
    return (
        Table(
            caption="Who sees what",
            columns=(Cell("Who"), Cell("Sees"), Cell("Epsilon")),
            rows=tuple((Cell(who), Cell(sees), Cell(epsilon)) for who, sees, epsilon in rows),
            note="Nobody is trusted with another hospital's images, but at least "
            f"{claim_wording.hospitals(sums.fewest_honest)} must add their noise to every sum and keep it to "
            "themselves.",
        ),
    )


def _why(colluding: int) -> str:
    if colluding == 0:
        return (
            "Every hospital knows its own share of the noise. The plan counts on none that tells the server: the rest "
            "of this section counts with the first column, and against another hospital the second one holds."
        )
    return (
        "Every hospital knows its own share of the noise; with those shares the server can subtract that part. The "
        "rest of this section counts with the larger epsilon."
    )


def _epsilon(value: float | None) -> str:
    return _NO_PROMISE if value is None else epsilon_text(value)


def _factor(value: float | None) -> str:
    return _NO_PROMISE if value is None else claim_wording.factor(value)
