"""The plan's ``[privacy.dp]`` table: which mechanism, and what drives it."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from medveil.configuration import Config
from medveil.dp.clipping import Clipping, FlatClipping

Unit = Literal["patient", "image", "site"]
Relation = Literal["add-remove", "replace-one"]
Trusted = Literal["curator", "server", "nobody"]


class Noise(Config):
    """How much noise: exactly one of the two first settings is given.

    Attributes:
        epsilon: that the whole training may cost; the noise is calibrated to it.
        multiplier: standard deviation of the noise divided by the sensitivity; epsilon follows from it.
        generator: "secure" (the operating system's entropy), or "seeded" for debugging: then nothing is private.
    """

    epsilon: float | None = Field(None, gt=0, le=1e9)
    multiplier: float | None = Field(None, ge=1e-6, le=4000)
    generator: Literal["secure", "seeded"] = "secure"

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.epsilon is None) == (self.multiplier is None):
            raise ValueError("exactly one of epsilon and multiplier")
        return self


class Sampling(Config):
    """Poisson sampling: every unit joins a step on its own, with the same probability.

    Attributes:
        rate: that probability.
        nominal_units: how many units there are, as a public number: of the pool, or per site by name. It sets the
            divisor (rate times this) and never comes from the data.
        max_images: at most so many images of a drawn patient, chosen at random, are averaged; None takes all.
    """

    rate: float = Field(gt=0, le=1)
    nominal_units: Annotated[int, Field(ge=2)] | dict[str, Annotated[int, Field(ge=2)]]
    max_images: int | None = Field(None, ge=1)


class _DpSgd(Config):
    """DP-SGD (Abadi et al. 2016, arXiv 1607.00133) with patients as units.

    Attributes:
        sampling: who joins a step.
        clipping: what bounds a unit's gradient.
        noise: how much.
        views: augmented views of every image, averaged before clipping (De et al. 2022, arXiv 2204.13650).
    """

    sampling: Sampling
    clipping: Clipping
    noise: Noise
    views: int = Field(1, ge=1, le=64)


class CentralDpSgd(_DpSgd):
    """A trusted curator holds all images and adds the noise; everyone else sees the noisy steps only."""

    kind: Literal["central"] = "central"


class LocalDpSgd(_DpSgd):
    """Every site adds noise of its own, enough for its own patients, and trusts nobody."""

    kind: Literal["local"] = "local"


class DistributedDpSgd(_DpSgd):
    """Every site adds a share of the noise, and the server sees nothing but the sum of all sites.

    Together the shares are enough against a server with as many sites on its side as
    ``privacy.secure_aggregation.colluding``, even when ``dropouts`` others are missing. ``sampling.nominal_units`` are
    those of all sites together.
    """

    kind: Literal["distributed"] = "distributed"


class SiteDpFedAvg(Config):
    """A trusted server clips what sites change and adds the noise (McMahan et al. 2018, arXiv 1710.06963).

    Attributes:
        clipping: of a site's change in a round.
        noise: how much.
        nominal_sites: how many sites there are, as a public number.
    """

    kind: Literal["site"] = "site"
    clipping: FlatClipping
    noise: Noise
    nominal_sites: int = Field(ge=2)


Mechanism = Annotated[CentralDpSgd | LocalDpSgd | DistributedDpSgd | SiteDpFedAvg, Field(discriminator="kind")]
