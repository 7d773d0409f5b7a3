"""The audit of a step that several sites take together, each with a share of the noise."""

import numpy as np
import pytest

from medveil.audit.components import audit_components
from medveil.audit.noise import check_noise
from medveil.audit.sensitivity import check_sensitivity
from medveil.dp.noise import NoiseMechanism, rounded_gaussian
from medveil.federation.secure.packing import NoisyPacking
from medveil.rng import SecureRandom, Seeds
from medveil.secagg.encoding import to_ring

pytestmark = pytest.mark.statistical

FIVE = {"sites": 5, "tolerated": 1, "absent": 1}
COINS = Seeds(12)


def _failed(audited):
    settled = audited.settled()
    return {part.name for part in check_noise(settled, COINS, tests=1e-7)[0] if not part.passed}


@pytest.mark.parametrize(("shares", "modulus_bits"), [(FIVE, 32), ({"sites": 3, "tolerated": 1, "grid_bits": 12}, 64)])
def test_the_step_of_sites_together_is_what_its_event_says(step_of, shares, modulus_bits):
    found = audit_components(step_of(shares=shares, modulus_bits=modulus_bits), steps=40)
    assert found.failed == ()
    assert any(line.startswith("Together") for line in found.scope)


def _std_of(change):
    def encode(self, total, random):
        return self._rounded(total) + rounded_gaussian(change(self), self.dimension, random)

    return encode


@pytest.mark.parametrize(
    "change",
    [
        lambda noise: noise.std_grid * np.sqrt(noise.honest / noise.sites),
        lambda noise: noise.std_grid * np.sqrt(noise.honest / (noise.sites - noise.tolerated)),
        lambda noise: noise.noise_multiplier * noise.sensitivity_grid,
    ],
    ids=["share of all sites", "absent sites forgotten", "whole noise at every site"],
)
def test_shares_of_the_wrong_size_are_noticed(monkeypatch, step_of, change):
    audited = step_of(shares=FIVE)
    monkeypatch.setattr(NoiseMechanism, "encode", _std_of(change))
    assert "noise" in _failed(audited)


def test_sites_that_draw_the_same_noise_are_noticed(monkeypatch, step_of):
    def encode(self, total, random):
        return self._rounded(total) + rounded_gaussian(self.std_grid, self.dimension, SecureRandom.seeded(Seeds(4)))

    monkeypatch.setattr(NoiseMechanism, "encode", encode)
    assert _failed(step_of(shares=FIVE)) & {"noise", "noise-freshness"}


def test_a_packing_that_doubles_what_one_site_adds_is_noticed(monkeypatch, step_of):
    monkeypatch.setattr(NoisyPacking, "pack", lambda self, made: to_ring(2 * made.content, self.bits))
    assert not check_sensitivity(step_of(shares=FIVE).settled(), COINS)[0].passed
