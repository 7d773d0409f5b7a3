"""What a plan binds together, and what it refuses to bind."""

import pytest
from scipy.stats import norm

from medveil.accounting.events import Gaussian, PoissonGaussian, Repeated
from medveil.dp.binding import bind
from medveil.dp.clipping import FlatClipping
from medveil.dp.noise import NoiseMechanism
from medveil.dp.plan import DELTA_RESERVE, StepPlan
from medveil.dp.settings import CentralDpSgd, LocalDpSgd, SiteDpFedAvg
from medveil.errors import ConfigError, GuaranteeError

TABLE = {
    "sampling": {"rate": 0.1, "nominal_units": 1000},
    "clipping": {"kind": "flat", "l2_clip_norm": 2.0},
    "noise": {"multiplier": 1.5},
}
CLAIM = {"unit": "patient", "relation": "add-remove", "delta": 1e-5, "steps": 50, "parties": 1}


def central(**changes):
    return bind(CentralDpSgd.model_validate(TABLE | changes), trusted="curator", **CLAIM)


def test_a_step_has_the_parts_of_its_plan():
    step = central().step(10, "pool", 1)
    assert step.event == PoissonGaussian(sampling_rate=0.1, noise_multiplier=1.5)
    assert step.noise == NoiseMechanism(l2_clip_norm=2.0, noise_multiplier=1.5, dimension=10)
    assert step.divisor == pytest.approx(100)


@pytest.mark.parametrize(
    "wrong",
    [
        {"sampling_rate": 0.2},
        {"noise": NoiseMechanism(l2_clip_norm=2.0, noise_multiplier=0.75, dimension=10)},
        {"noise": NoiseMechanism(l2_clip_norm=1.0, noise_multiplier=1.5, dimension=10)},
        {"clipping": FlatClipping(l2_clip_norm=4.0)},
        {"event": PoissonGaussian(sampling_rate=0.1, noise_multiplier=3.0)},
    ],
    ids=["rate", "noise", "noise clip", "clip", "event"],
)
def test_parts_that_do_not_belong_together_are_refused(wrong):
    right = central().step(10, "pool", 1)
    parts = {name: getattr(right, name) for name in right.__dataclass_fields__}
    StepPlan(**parts)
    with pytest.raises(GuaranteeError, match="does not do what its event says"):
        StepPlan(**parts | wrong)


def test_the_noisy_count_of_adaptive_clipping_is_paid_from_the_sum():
    plan = central(clipping={"kind": "adaptive", "l2_clip_norm": 2.0, "count_noise_multiplier": 3.0})
    step = plan.step(10, "pool", 1)
    assert step.event.noise_multiplier == 1.5
    # 1.5^-2 = s^-2 + 6^-2
    assert step.noise.noise_multiplier == pytest.approx((1.5**-2 - 6**-2) ** -0.5)


def test_sizes_are_shared_out_or_named():
    local = TABLE | {"sampling": {"rate": 0.1, "nominal_units": 1000}}
    plan = bind(LocalDpSgd.model_validate(local), trusted="nobody", **CLAIM | {"parties": 4})
    assert plan.step(10, "north", 4).divisor == pytest.approx(25)
    named = TABLE | {"sampling": {"rate": 0.1, "nominal_units": {"north": 600, "south": 400}}}
    plan = bind(LocalDpSgd.model_validate(named), trusted="nobody", **CLAIM | {"parties": 2})
    assert plan.step(10, "north", 2).divisor == pytest.approx(60)
    with pytest.raises(ConfigError, match="nominal size is not stated"):
        plan.step(10, "east", 2)


def test_delta_is_held_against_the_smallest_party():
    named = TABLE | {"sampling": {"rate": 0.1, "nominal_units": {"north": 100_000, "south": 50}}}
    claim = CLAIM | {"delta": 0.02, "parties": 2}
    with pytest.raises(ConfigError, match="delta is too large"):
        bind(LocalDpSgd.model_validate(named), trusted="nobody", **claim)
    bind(LocalDpSgd.model_validate(named), trusted="nobody", **claim | {"delta": 0.0199})


def test_a_site_mechanism_is_a_gaussian_every_round():
    mechanism = SiteDpFedAvg.model_validate(
        {"clipping": {"kind": "flat", "l2_clip_norm": 1.0}, "noise": {"epsilon": 2.0}, "nominal_sites": 10}
    )
    plan = bind(mechanism, trusted="server", **CLAIM | {"unit": "site"})
    assert plan.event() == Repeated(event=Gaussian(noise_multiplier=plan.noise_multiplier), count=50)
    assert plan.sampling_rate == 1.0
    # 50 Gaussians compose to one with sigma / sqrt(50): Balle & Wang 2018, theorem 8.
    mu, reached, delta = 50**0.5 / plan.noise_multiplier, plan.total().epsilon, 1e-5 * (1 - DELTA_RESERVE)
    exact = norm.cdf(mu / 2 - reached / mu) - 2.718281828459045**reached * norm.cdf(-mu / 2 - reached / mu)
    assert 1.998 <= reached <= 2.0
    assert exact == pytest.approx(delta, rel=0.02)
    with pytest.raises(GuaranteeError, match="no steps of patients"):
        plan.step(10, "pool", 1)


def test_calibration_leaves_room_for_what_came_earlier():
    noise = {"noise": {"epsilon": 3.0}}
    mechanism = CentralDpSgd.model_validate(TABLE | noise)
    alone = bind(mechanism, trusted="curator", **CLAIM)
    after = bind(mechanism, trusted="curator", earlier=[Gaussian(noise_multiplier=3.0)], **CLAIM)
    assert after.noise_multiplier > alone.noise_multiplier
    assert alone.total().epsilon == pytest.approx(3.0, rel=2e-3)
    assert after.total().epsilon == pytest.approx(3.0, rel=2e-3)
    assert after.alone(after.event()).epsilon < 3.0


def test_an_earlier_release_can_leave_nothing():
    mechanism = CentralDpSgd.model_validate(TABLE | {"noise": {"epsilon": 0.5}})
    with pytest.raises(GuaranteeError):
        bind(mechanism, trusted="curator", earlier=[Gaussian(noise_multiplier=0.5)], **CLAIM)
