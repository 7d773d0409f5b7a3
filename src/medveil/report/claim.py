"""The record's ``privacy`` as the report reads it.

Unlike other parts of a record it has no defaults: a claim with a piece missing is a damaged record, not a weaker claim.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from medveil.report.parts import Curve, Part

Share = Annotated[float, Field(ge=0, le=1)]
Epsilon = Annotated[float, Field(ge=0)]


class MembershipRate(Part):
    """The largest true-positive rate that any membership attack can have at a false-positive rate."""

    fpr: Share
    tpr: Share


class TradeOff(Curve):
    """The smallest false-negative rate that any membership attack can have, by its false-positive rate."""

    fpr: tuple[Share, ...] = Field(min_length=2)
    fnr: tuple[Share, ...]


class ReconstructionBound(Part):
    """The largest chance of rebuilding a unit's data, where ``prior`` is the chance without the model."""

    prior: Annotated[float, Field(gt=0, le=1)]
    bound: Share


class Meaning(Part):
    """What epsilon and delta allow the best attack."""

    membership_advantage: Share
    tpr_at_fpr: tuple[MembershipRate, ...]
    trade_off: TradeOff
    reconstruction: tuple[ReconstructionBound, ...]


class Release(Part):
    """One thing that touched the units, with what it costs on its own."""

    what: str
    event: dict[str, Any]
    epsilon: Epsilon


class LedgerState(Part):
    """What one site's privacy ledger said when the run ended."""

    entries: int
    epsilon_all_runs: Epsilon | None
    runs: int
    cap: float | None
    head: str


class Claim(Part):
    """What the run promises, to whom, and on what it rests.

    Args:
        stamp: "NOT PRIVATE" where the promise does not hold; None where it does.
        stamp_reasons: why, one sentence each.
        epsilon: of the party that has it worst, everything composed.
        epsilon_server: against the coordinating server; None where the server is trusted.
        epsilon_insider: against other parties of the training; in the mode "distributed", against the server with as
            many of them on its side as the plan tolerates.
        epsilon_rdp: cross-check by another accountant; None where that knows no bound.
        epsilon_target: that the noise was calibrated to; None where the noise was given.
    """

    stamp: Literal["NOT PRIVATE"] | None
    stamp_reasons: tuple[str, ...]
    mode: Literal["central", "local", "distributed", "site"]
    unit: Literal["patient", "image", "site"]
    relation: Literal["add-remove", "replace-one"]
    delta: Annotated[float, Field(gt=0, lt=1)]
    epsilon: Epsilon
    epsilon_server: Epsilon | None
    epsilon_insider: Epsilon | None
    epsilon_rdp: Epsilon | None
    epsilon_target: Epsilon | None
    noise_multiplier: float
    sampling_rate: Share
    steps: int
    steps_planned: int
    l2_clip_norm: float
    clipping: str
    accountant: str
    trusted: Literal["curator", "server", "nobody"]
    holds_against: tuple[str, ...]
    assumptions: tuple[str, ...]
    out_of_scope: tuple[str, ...]
    composition: tuple[Release, ...]
    meaning: Meaning
    ledgers: dict[str, LedgerState] | None
