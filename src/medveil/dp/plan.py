"""The bound plan: sampler, clip, noise and the event that they imply, frozen together before any data are read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medveil.accounting.accountants import Spent, epsilon_of
from medveil.accounting.calibrate import calibrate_event, calibrate_noise
from medveil.accounting.events import Event, Gaussian, PoissonGaussian, Repeated, compose
from medveil.dp.clipping import AdaptiveClipping, Clipping, sum_noise_multiplier
from medveil.dp.noise import NoiseMechanism, delta_slack
from medveil.dp.settings import CentralDpSgd, LocalDpSgd, Mechanism, Relation, SiteDpFedAvg, Trusted, Unit
from medveil.errors import ConfigError, GuaranteeError

_TRUSTED: Mapping[str, Trusted] = {"central": "curator", "local": "nobody", "site": "server"}
# Part of delta kept back for rounding and finite random words; PrivacyPlan.step checks that it suffices.
DELTA_RESERVE = 1e-6
# An epsilon beyond this is no promise: the probability of an outcome may change 10^43-fold.
LARGEST_CLAIM = 100.0


@dataclass(frozen=True)
class StepPlan:
    """One private step of one party.

    Args:
        sampling_rate: probability with which each unit joins.
        max_images: of a drawn unit; None takes all.
        views: of each image.
        clipping: of a unit's mean gradient.
        noise: on the sum; its clip norm and multiplier are those of ``clipping`` and ``event``.
        divisor: public number that the noisy sum is divided by.
        event: what the step costs.

    Raises:
        GuaranteeError: the parts do not belong together, so that the event would not be what happens.
    """

    sampling_rate: float
    max_images: int | None
    views: int
    clipping: Clipping
    noise: NoiseMechanism
    divisor: float
    event: PoissonGaussian

    def __post_init__(self) -> None:
        multiplier = self.event.noise_multiplier
        if isinstance(self.clipping, AdaptiveClipping):
            multiplier = sum_noise_multiplier(multiplier, self.clipping.count_noise_multiplier)
        facts = {
            "sampling rate": (self.sampling_rate, self.event.sampling_rate),
            "noise multiplier": (self.noise.noise_multiplier, multiplier),
            "clip norm": (self.noise.l2_clip_norm, self.clipping.l2_clip_norm),
        }
        for name, (does, says) in facts.items():
            if does != says:
                raise GuaranteeError(
                    f"A private step does not do what its event says: another {name}",
                    got=does,
                    expected=says,
                    remedy="bind the step with PrivacyPlan.step",
                )


@dataclass(frozen=True)
class PrivacyPlan:
    """What a run promises, and what its noise must be for that.

    Args:
        mechanism: the plan's table.
        unit: whose presence is hidden.
        relation: between neighbouring data sets.
        delta: of the guarantee, whole.
        trusted: who sees more than the guarantee covers.
        steps: of the whole training, of each party.
        noise_multiplier: given or calibrated.
        earlier: what else touched the same units; composed with the training.
    """

    mechanism: Mechanism
    unit: Unit
    relation: Relation
    delta: float
    trusted: Trusted
    steps: int
    noise_multiplier: float
    earlier: tuple[Event, ...] = ()

    @property
    def secure(self) -> bool:
        """Whether the noise comes from a cryptographic generator; a debugging run's does not."""
        return self.mechanism.noise.generator == "secure"

    @property
    def sampling_rate(self) -> float:
        """Probability with which a unit joins a step; 1 for sites, which all take part."""
        return 1.0 if isinstance(self.mechanism, SiteDpFedAvg) else self.mechanism.sampling.rate

    def step_event(self) -> PoissonGaussian | Gaussian:
        """What one step costs each unit."""
        return _step_event(self.mechanism, self.noise_multiplier)

    def event(self, steps: int | None = None) -> Event:
        """What ``steps`` steps cost; all of the training by default."""
        return Repeated(event=self.step_event(), count=self.steps if steps is None else steps)

    def alone(self, event: Event) -> Spent:
        """Epsilon of ``event`` on its own, at the plan's delta less what is reserved for rounding."""
        return epsilon_of(event, delta=net_delta(self.delta), relation=self.relation)

    def total(self, training: Event | None = None) -> Spent:
        """Epsilon of ``training`` (as planned by default) and of everything earlier, composed."""
        return self.alone(compose([self.event() if training is None else training, *self.earlier]))

    def step(self, dimension: int, party: str, parties: int) -> StepPlan:
        """The step of one party, for a model of ``dimension`` trainable parameters.

        Raises:
            GuaranteeError: the mechanism has no steps of this kind, or the slack of the noise exceeds what is
                reserved for it.
            ConfigError: the party's nominal size is not stated.
        """
        mechanism, event = self.mechanism, self.step_event()
        if isinstance(mechanism, SiteDpFedAvg) or isinstance(event, Gaussian):
            raise GuaranteeError("Site-level privacy has no steps of patients", expected='kind = "central" or "local"')
        multiplier = self.noise_multiplier
        if isinstance(mechanism.clipping, AdaptiveClipping):
            multiplier = sum_noise_multiplier(multiplier, mechanism.clipping.count_noise_multiplier)
        noise = NoiseMechanism(
            l2_clip_norm=mechanism.clipping.l2_clip_norm, noise_multiplier=multiplier, dimension=dimension
        )
        self._check_slack(noise)
        return StepPlan(
            sampling_rate=mechanism.sampling.rate,
            max_images=mechanism.sampling.max_images,
            views=mechanism.views,
            clipping=mechanism.clipping,
            noise=noise,
            divisor=mechanism.sampling.rate * nominal_units(mechanism, party, parties),
            event=event,
        )

    def _check_slack(self, noise: NoiseMechanism) -> None:
        slack = delta_slack(noise.dimension, self.steps, noise.std_grid, epsilon=LARGEST_CLAIM)
        if slack > self.delta * DELTA_RESERVE:
            raise GuaranteeError(
                "The noise that a computer draws differs too much from the noise of the guarantee",
                got=f"a slack of {slack:.1g} in delta",
                expected=f"at most {self.delta * DELTA_RESERVE:.1g}",
                remedy="raise privacy.delta, or take fewer steps",
            )


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

    Raises:
        ConfigError: delta is too large for the number of units, or the unit is not the mechanism's.
        GuaranteeError: no noise reaches the target, or the plan names other trusted parties than the mechanism has.
    """
    _check_trust(mechanism, trusted)
    _check_unit(mechanism, unit)
    check_delta(delta, smallest_party(mechanism, parties), nominal=True)
    multiplier = mechanism.noise.multiplier
    if multiplier is None:
        multiplier = _calibrated(mechanism, net_delta(delta), relation, steps, earlier)
    if isinstance(mechanism, CentralDpSgd | LocalDpSgd) and isinstance(mechanism.clipping, AdaptiveClipping):
        sum_noise_multiplier(multiplier, mechanism.clipping.count_noise_multiplier)
    return PrivacyPlan(mechanism, unit, relation, delta, trusted, steps, multiplier, tuple(earlier))


def net_delta(delta: float) -> float:
    """Delta that accounting uses: the rest is reserved for rounding and finite random words."""
    return delta * (1 - DELTA_RESERVE)


def nominal_units(mechanism: CentralDpSgd | LocalDpSgd, party: str, parties: int) -> float:
    """Public size of a party.

    Raises:
        ConfigError: sizes are stated by name and this name is not among them.
    """
    stated = mechanism.sampling.nominal_units
    if isinstance(stated, int):
        return stated / parties
    if isinstance(mechanism, CentralDpSgd):
        return float(sum(stated.values()))
    if party not in stated:
        raise ConfigError(
            "A site's public nominal size is not stated",
            got=f"privacy.dp.sampling.nominal_units for {', '.join(sorted(stated))}",
            expected=f"one for {party} too",
            remedy="add it, or give one number for the pool, which counts sites as equal",
        )
    return float(stated[party])


def smallest_party(mechanism: Mechanism, parties: int) -> float:
    """Public size of the smallest party, which delta is held against."""
    if isinstance(mechanism, SiteDpFedAvg):
        return mechanism.nominal_sites
    stated = mechanism.sampling.nominal_units
    if isinstance(stated, int):
        return stated / parties
    return sum(stated.values()) if isinstance(mechanism, CentralDpSgd) else min(stated.values())


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


def _step_event(mechanism: Mechanism, noise_multiplier: float) -> PoissonGaussian | Gaussian:
    if isinstance(mechanism, SiteDpFedAvg):
        return Gaussian(noise_multiplier=noise_multiplier)
    return PoissonGaussian(sampling_rate=mechanism.sampling.rate, noise_multiplier=noise_multiplier)


def _calibrated(mechanism: Mechanism, delta: float, relation: Relation, steps: int, earlier: Sequence[Event]) -> float:
    epsilon = mechanism.noise.epsilon or 0.0
    if not earlier and not isinstance(mechanism, SiteDpFedAvg):
        return calibrate_noise(
            epsilon=epsilon, delta=delta, sampling_rate=mechanism.sampling.rate, steps=steps, relation=relation
        )

    def everything(multiplier: float) -> Event:
        return compose([Repeated(event=_step_event(mechanism, multiplier), count=steps), *earlier])

    return calibrate_event(everything, epsilon=epsilon, delta=delta, relation=relation)


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
