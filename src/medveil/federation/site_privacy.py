"""Site-level differential privacy: each site's change is clipped, and a trusted server adds noise to the sum.

Reference: McMahan et al. 2018, Algorithm 1, https://arxiv.org/abs/1710.06963, with every site taking part in every
round: sites see who takes part, so no amplification by sampling is claimed.
"""

from dataclasses import replace
from typing import ClassVar

import numpy as np

from medveil.accounting.events import Gaussian
from medveil.dp.noise import NoiseMechanism
from medveil.dp.plan import PrivacyPlan
from medveil.errors import GuaranteeError
from medveil.federation.stages import Role, Stage, StageContext
from medveil.federation.update import Update
from medveil.rng import SecureRandom

# Room for the rounding of a float64 norm and product, far above their error and far below any effect.
_ROOM = 1 - 2.0**-30


class SiteClipStage:
    """Scale a site's change down to the clip norm.

    Guarantees:
        Adding or removing a site changes the sum by at most the clip norm in L2.
    """

    role: ClassVar[Role] = "clip"

    def __init__(self, l2_clip_norm: float) -> None:
        self._norm = l2_clip_norm

    def at_site(self, update: Update, context: StageContext) -> Update:
        """Clip the mean change; a change that is not finite counts as none."""
        del context
        change = update.mean()
        largest = float(np.abs(change).max(initial=0.0))
        if not np.isfinite(largest) or largest == 0:
            return Update(np.zeros_like(change), 1.0)
        direction = change / largest  # squares of the change itself may overflow
        norm = float(np.linalg.norm(direction))
        return Update(direction * min(largest, _ROOM * self._norm / norm), 1.0)

    def at_server(self, total: Update, context: StageContext) -> Update:
        """Nothing to undo."""
        del context
        return total

    def event(self, context: StageContext) -> object | None:
        """Spends nothing by itself."""
        del context
        return None

    def describe(self) -> str:
        """One sentence for the report."""
        return f"Each site's change a round was clipped to L2 norm {self._norm:g}."


class ServerNoiseStage:
    """Add Gaussian noise to the sum of clipped changes and divide by the public number of sites.

    Args:
        noise_multiplier: noise over clip norm.
        l2_clip_norm: of the clipping stage.
        nominal_sites: the public divisor.
        random: the server's own.

    Guarantees:
        The Gaussian mechanism for sites, against everyone but the server.
    """

    role: ClassVar[Role] = "noise"

    def __init__(
        self, *, noise_multiplier: float, l2_clip_norm: float, nominal_sites: int, random: SecureRandom
    ) -> None:
        self._multiplier = noise_multiplier
        self._norm = l2_clip_norm
        self._sites = nominal_sites
        self._random = random

    def at_site(self, update: Update, context: StageContext) -> Update:
        """Nothing: the noise is the server's."""
        del context
        return update

    def at_server(self, total: Update, context: StageContext) -> Update:
        """Noise, on the grid; a seeded source draws the same for a round that is repeated after an interruption."""
        random = self._random if self._random.secure else self._random.replay(f"round {context.round}")
        vector = np.asarray(total.vector, dtype=np.float64)
        mechanism = NoiseMechanism(l2_clip_norm=self._norm, noise_multiplier=self._multiplier, dimension=vector.size)
        return replace(total, vector=mechanism.release(vector, random), weight=float(self._sites))

    def event(self, context: StageContext) -> object | None:
        """One release."""
        del context
        return Gaussian(noise_multiplier=self._multiplier)

    def describe(self) -> str:
        """One sentence for the report."""
        return f"The server added Gaussian noise of {self._multiplier:.3g} clip norms to the sum of the changes."


def site_privacy_stages(plan: PrivacyPlan, random: SecureRandom) -> tuple[Stage, ...]:
    """The stages of site-level privacy, clip before noise.

    Raises:
        GuaranteeError: the plan is not of that kind.
    """
    mechanism = plan.mechanism
    if mechanism.kind != "site":
        raise GuaranteeError("The plan does not protect sites as wholes", got=mechanism.kind, expected="site")
    norm = mechanism.clipping.l2_clip_norm
    return (
        SiteClipStage(norm),
        ServerNoiseStage(
            noise_multiplier=plan.noise_multiplier,
            l2_clip_norm=norm,
            nominal_sites=mechanism.nominal_sites,
            random=random,
        ),
    )
