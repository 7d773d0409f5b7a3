"""Site-level privacy: what sites send is clipped, what the server publishes has noise."""

import numpy as np
import pytest
from scipy.stats import kstest

from medveil.dp.binding import bind
from medveil.dp.settings import CentralDpSgd, SiteDpFedAvg
from medveil.errors import GuaranteeError, PipelineError
from medveil.federation.site_privacy import site_privacy_stages
from medveil.federation.stages import NormBound, NormBoundStage, Pipeline, StageContext, build_pipeline
from medveil.federation.update import Update
from medveil.rng import SecureRandom, Seeds

HERE = StageContext(1, "north", ("north", "south"))


def plan(multiplier=2.0, sites=4):
    mechanism = SiteDpFedAvg.model_validate(
        {
            "clipping": {"kind": "flat", "l2_clip_norm": 3.0},
            "noise": {"multiplier": multiplier},
            "nominal_sites": sites,
        }
    )
    return bind(mechanism, unit="site", relation="add-remove", delta=1e-3, trusted="server", steps=2, parties=1)


def pipeline(**options):
    return Pipeline(site_privacy_stages(plan(**options), SecureRandom()))


@pytest.mark.parametrize("scale", [0.0, 1e-300, 0.1, 1.0, 1e3, 1e300])
def test_no_site_moves_the_sum_further_than_the_clip_norm(scale):
    change = np.array([3.0, -4.0, 12.0]) * scale
    sent = pipeline().at_site(Update.from_mean(change, 1.0), HERE)
    assert np.linalg.norm(sent.vector) <= 3.0
    assert sent.weight == 1.0
    if 13 * scale < 3:
        assert np.allclose(sent.vector, change)


def test_a_change_that_is_not_finite_counts_as_none():
    sent = pipeline().at_site(Update.from_mean(np.array([np.nan, 1.0]), 1.0), HERE)
    assert not sent.vector.any()


def test_the_sum_gets_noise_and_a_public_divisor():
    total = Update(np.zeros(20_000), 2.0)
    published = pipeline(multiplier=2.0, sites=4).at_server(total, HERE).mean()
    assert kstest(published, "norm", args=(0, 2.0 * 3.0 / 4)).pvalue > 1e-6
    assert kstest(published, "norm", args=(0, 2.0 * 3.0 / 2)).pvalue < 1e-6  # were the divisor the sites present


def test_a_second_clip_is_refused():
    private = site_privacy_stages(plan(), SecureRandom())
    with pytest.raises(PipelineError):
        build_pipeline([{"kind": "norm_bound", "l2_norm": 1.0}], private)
    with pytest.raises(PipelineError):
        Pipeline([*reversed(private)])
    with pytest.raises(PipelineError):
        Pipeline([private[1], NormBoundStage(NormBound(l2_norm=1.0))])


def test_other_mechanisms_have_no_such_stages():
    table = {
        "sampling": {"rate": 0.1, "nominal_units": 100},
        "clipping": {"kind": "flat", "l2_clip_norm": 1.0},
        "noise": {"multiplier": 1.0},
    }
    claim = {"unit": "patient", "relation": "add-remove", "delta": 1e-3, "steps": 2, "parties": 1}
    other = bind(CentralDpSgd.model_validate(table), trusted="curator", **claim)
    with pytest.raises(GuaranteeError):
        site_privacy_stages(other, SecureRandom())


def test_a_seeded_server_draws_the_same_noise_for_a_round_that_is_repeated():
    """For debugging: a run that is interrupted is the run that is not; a secure source never repeats."""
    total = Update(np.zeros(8), 4.0)

    def noise(pipeline, number):
        return pipeline.at_server(total, StageContext(round=number, site=None, sites=("a", "b"))).vector

    def seeded():
        return Pipeline(site_privacy_stages(plan(), SecureRandom.seeded(Seeds(1))))

    whole, again = seeded(), seeded()
    first, second = noise(whole, 1), noise(whole, 2)
    assert np.array_equal(noise(again, 2), second)
    assert not np.array_equal(first, second)
    secure = Pipeline(site_privacy_stages(plan(), SecureRandom()))
    assert not np.array_equal(noise(secure, 1), noise(secure, 1))
