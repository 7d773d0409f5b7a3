"""The bound plan: sampler, clip, noise and the event that they imply, frozen together before any data are read."""

import math
from dataclasses import dataclass

from medveil.accounting.accountants import Spent, epsilon_of
from medveil.accounting.events import Event, Gaussian, PoissonGaussian, Repeated, compose
from medveil.dp.clipping import AdaptiveClipping, Clipping, sum_noise_multiplier
from medveil.dp.noise import GRID_BITS, NoiseMechanism, delta_slack
from medveil.dp.settings import (
    CentralDpSgd,
    DistributedDpSgd,
    LocalDpSgd,
    Mechanism,
    Relation,
    SiteDpFedAvg,
    Trusted,
    Unit,
)
from medveil.errors import ConfigError, GuaranteeError

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
class Shares:
    """How many sites' noise makes up the whole; the default is one party that adds all of it.

    Args:
        sites: whose noise is in one sum.
        tolerated: of them, that may tell the server their noise.
        absent: of them, that may be missing.
    """

    sites: int = 1
    tolerated: int = 0
    absent: int = 0

    def multiplier_against(self, colluding: int, noise_multiplier: float) -> float:
        """The multiplier that a server with ``colluding`` sites faces when all that may be absent are.

        Args:
            colluding: >= 0; more than are tolerated face less than was meant, and at last nothing.
            noise_multiplier: against the server with all that are tolerated.
        """
        honest = self.sites - self.tolerated - self.absent
        return noise_multiplier * math.sqrt(max(self.sites - self.absent - colluding, 0) / honest)


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
        noise_multiplier: given or calibrated; against the worst coalition that is tolerated.
        earlier: what else touched the same units; composed with the training.
        shares: how the noise is shared out.
    """

    mechanism: Mechanism
    unit: Unit
    relation: Relation
    delta: float
    trusted: Trusted
    steps: int
    noise_multiplier: float
    earlier: tuple[Event, ...] = ()
    shares: Shares = Shares()

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
        return step_event_of(self.mechanism, self.noise_multiplier)

    def event(self, steps: int | None = None) -> Event:
        """What ``steps`` steps cost; all of the training by default."""
        return Repeated(event=self.step_event(), count=self.steps if steps is None else steps)

    def against(self, colluding: int, steps: int) -> Spent | None:
        """Epsilon of ``steps`` steps and of everything earlier, against a server with ``colluding`` sites on its side.

        One of those sites without the server is no better off: it sees the same sums. None where no noise is left.
        """
        multiplier = self.shares.multiplier_against(colluding, self.noise_multiplier)
        if multiplier == 0:
            return None
        training = Repeated(event=step_event_of(self.mechanism, multiplier), count=steps)
        return self.alone(compose([training, *self.earlier]))

    def alone(self, event: Event) -> Spent:
        """Epsilon of ``event`` on its own, at the plan's delta less what is reserved for rounding."""
        return epsilon_of(event, delta=net_delta(self.delta), relation=self.relation)

    def total(self, training: Event | None = None) -> Spent:
        """Epsilon of ``training`` (as planned by default) and of everything earlier, composed."""
        return self.alone(compose([self.event() if training is None else training, *self.earlier]))

    def step(self, dimension: int, party: str, parties: int, *, grid_bits: int = GRID_BITS) -> StepPlan:
        """The step of one party, for a model of ``dimension`` trainable parameters.

        Args:
            dimension: trainable parameters.
            party: its name.
            parties: how many train.
            grid_bits: of the noise's grid.

        Raises:
            GuaranteeError: the mechanism has no steps of this kind, or the slack of the noise exceeds what is
                reserved for it.
            ConfigError: the party's nominal size is not stated.
        """
        mechanism, event = self.mechanism, self.step_event()
        if isinstance(mechanism, SiteDpFedAvg) or isinstance(event, Gaussian):
            raise GuaranteeError(
                "Site-level privacy has no steps of patients", expected='kind = "central", "local" or "distributed"'
            )
        multiplier = self.noise_multiplier
        if isinstance(mechanism.clipping, AdaptiveClipping):
            multiplier = sum_noise_multiplier(multiplier, mechanism.clipping.count_noise_multiplier)
        noise = NoiseMechanism(
            l2_clip_norm=mechanism.clipping.l2_clip_norm,
            noise_multiplier=multiplier,
            dimension=dimension,
            sites=self.shares.sites,
            tolerated=self.shares.tolerated,
            absent=self.shares.absent,
            grid_bits=grid_bits,
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
        slack = delta_slack(noise.dimension, self.steps, noise.std_grid, epsilon=LARGEST_CLAIM, honest=noise.honest)
        if slack > self.delta * DELTA_RESERVE:
            raise GuaranteeError(
                "The noise that a computer draws differs too much from the noise of the guarantee",
                got=f"a slack of {slack:.1g} in delta",
                expected=f"at most {self.delta * DELTA_RESERVE:.1g}",
                remedy="raise privacy.delta, or take fewer steps",
            )


def net_delta(delta: float) -> float:
    """Delta that accounting uses: the rest is reserved for rounding and finite random words."""
    return delta * (1 - DELTA_RESERVE)


def nominal_units(mechanism: CentralDpSgd | LocalDpSgd | DistributedDpSgd, party: str, parties: int) -> float:
    """Public size of what a step draws from: a party, or all parties where they add up.

    Raises:
        ConfigError: sizes are stated by name and this name is not among them.
    """
    stated = mechanism.sampling.nominal_units
    if not isinstance(mechanism, LocalDpSgd):
        return float(stated if isinstance(stated, int) else sum(stated.values()))
    if isinstance(stated, int):
        return stated / parties
    if party not in stated:
        raise ConfigError(
            "A site's public nominal size is not stated",
            got=f"privacy.dp.sampling.nominal_units for {', '.join(sorted(stated))}",
            expected=f"one for {party} too",
            remedy="add it, or give one number for the pool, which counts sites as equal",
        )
    return float(stated[party])


def step_event_of(mechanism: Mechanism, noise_multiplier: float) -> PoissonGaussian | Gaussian:
    """What one step of a mechanism costs each unit."""
    if isinstance(mechanism, SiteDpFedAvg):
        return Gaussian(noise_multiplier=noise_multiplier)
    return PoissonGaussian(sampling_rate=mechanism.sampling.rate, noise_multiplier=noise_multiplier)
