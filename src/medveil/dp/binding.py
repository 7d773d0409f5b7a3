"""Binding a plan: whether its claim can be kept, and how much noise that takes."""

from collections.abc import Mapping, Sequence

from medveil.accounting.calibrate import calibrate_event, calibrate_noise
from medveil.accounting.events import Event, Repeated, compose
from medveil.dp.clipping import AdaptiveClipping, sum_noise_multiplier
from medveil.dp.plan import PrivacyPlan, Shares, net_delta, step_event_of
from medveil.dp.settings import DistributedDpSgd, LocalDpSgd, Mechanism, Relation, SiteDpFedAvg, Trusted, Unit
from medveil.errors import ConfigError, GuaranteeError

_TRUSTED: Mapping[str, Trusted] = {
    "central": "curator",
    "local": "nobody",
    "distributed": "nobody",
    "site": "server",
}


def bind(
    mechanism: Mechanism,
    *,
    unit: Unit,
    relation: Relation,
    delta: float,
    trusted: Trusted,
    steps: int,
    parties: int,
    earlier: Sequence[Event] = (),
    shares: Shares | None = None,
) -> PrivacyPlan:
    """Check that the claim can be kept, and calibrate the noise.

    Args:
        mechanism: the plan's table.
        unit: whose presence is hidden.
        relation: between neighbouring data sets.
        delta: in (0, 1), below one over the number of units of the smallest party.
        trusted: must be whom the mechanism trusts.
        steps: of each party over the whole training.
        parties: that train (1 for a curator).
        earlier: what else touched the same units.
        shares: how sites share the noise; only for distributed privacy, and needed there.

    Raises:
        ConfigError: delta is too large for the number of units, the unit is not the mechanism's, or the clip norm
            would adapt to a count that no site alone has.
        GuaranteeError: no noise reaches the target, or the plan names other trusted parties than the mechanism has.
    """
    _check_trust(mechanism, trusted)
    _check_unit(mechanism, unit)
    check_delta(delta, smallest_party(mechanism, parties), nominal=True)
    shares = _checked_shares(mechanism, shares)
    multiplier = mechanism.noise.multiplier
    if multiplier is None:
        multiplier = _calibrated(mechanism, net_delta(delta), relation, steps, earlier)
    if not isinstance(mechanism, SiteDpFedAvg) and isinstance(mechanism.clipping, AdaptiveClipping):
        sum_noise_multiplier(multiplier, mechanism.clipping.count_noise_multiplier)
    return PrivacyPlan(mechanism, unit, relation, delta, trusted, steps, multiplier, tuple(earlier), shares)


def smallest_party(mechanism: Mechanism, parties: int) -> float:
    """Public size of the smallest party, which delta is held against."""
    if isinstance(mechanism, SiteDpFedAvg):
        return mechanism.nominal_sites
    stated = mechanism.sampling.nominal_units
    if isinstance(mechanism, LocalDpSgd):
        return stated / parties if isinstance(stated, int) else min(stated.values())
    return stated if isinstance(stated, int) else sum(stated.values())


def check_delta(delta: float, units: float, *, nominal: bool) -> None:
    """Refuse a delta that would allow publishing one unit of ``units`` in the clear.

    Raises:
        ConfigError: delta is not below 1 / units.
    """
    if not 0 < delta < 1 / units:
        whose = "nominal size" if nominal else "number of units"
        raise ConfigError(
            "delta is too large: publishing one patient at random would satisfy the guarantee",
            got=f"privacy.delta = {delta:g}",
            expected=f"above 0 and below 1/N, N being the {whose} of the smallest party"
            + (f" ({units:g})" if nominal else ""),
            remedy="lower privacy.delta; 1/(10 N) or less is usual",
        )


def _calibrated(mechanism: Mechanism, delta: float, relation: Relation, steps: int, earlier: Sequence[Event]) -> float:
    epsilon = mechanism.noise.epsilon or 0.0
    if not earlier and not isinstance(mechanism, SiteDpFedAvg):
        return calibrate_noise(
            epsilon=epsilon, delta=delta, sampling_rate=mechanism.sampling.rate, steps=steps, relation=relation
        )

    def everything(multiplier: float) -> Event:
        return compose([Repeated(event=step_event_of(mechanism, multiplier), count=steps), *earlier])

    return calibrate_event(everything, epsilon=epsilon, delta=delta, relation=relation)


def _checked_shares(mechanism: Mechanism, shares: Shares | None) -> Shares:
    distributed = isinstance(mechanism, DistributedDpSgd)
    if distributed != (shares is not None):
        raise GuaranteeError(
            "Noise is shared out among sites exactly when privacy is distributed",
            got=f'privacy.dp.kind = "{mechanism.kind}" {"without" if shares is None else "with"} shares',
            expected="how many sites add noise, how many may collude and how many may be absent",
            remedy="add [privacy.secure_aggregation]",
        )
    if isinstance(mechanism, DistributedDpSgd) and isinstance(mechanism.clipping, AdaptiveClipping):
        raise ConfigError(
            "An adaptive clip norm needs a noisy count, which no site alone can release",
            got='privacy.dp.clipping.kind = "adaptive" with privacy.dp.kind = "distributed"',
            expected='"flat", "auto-s" or "per-layer"',
            remedy="state a clip norm",
        )
    return shares or Shares()


def _check_trust(mechanism: Mechanism, trusted: Trusted) -> None:
    expected = _TRUSTED[mechanism.kind]
    if trusted != expected:
        raise GuaranteeError(
            "The plan names another trusted party than its mechanism has",
            got=f'privacy.trusted = "{trusted}" with privacy.dp.kind = "{mechanism.kind}"',
            expected=f'"{expected}"',
            remedy="state whom the mechanism trusts, or choose a mechanism that trusts fewer",
        )


def _check_unit(mechanism: Mechanism, unit: Unit) -> None:
    if (unit == "site") != isinstance(mechanism, SiteDpFedAvg):
        raise ConfigError(
            "The privacy unit is not the one that the mechanism protects",
            got=f'privacy.unit = "{unit}" with privacy.dp.kind = "{mechanism.kind}"',
            expected='"site"' if isinstance(mechanism, SiteDpFedAvg) else '"patient" or "image"',
            remedy="correct privacy.unit, or choose another mechanism",
        )
