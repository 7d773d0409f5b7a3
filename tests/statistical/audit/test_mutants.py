"""The audit must notice a private step that is wrong: each mutant is planted in the real code."""

import math

import numpy as np
import pytest
import torch

from medveil.audit.components import audit_components
from medveil.audit.count import check_count
from medveil.audit.noise import check_noise
from medveil.audit.sampling import check_sampling
from medveil.audit.sensitivity import check_divisor, check_sensitivity
from medveil.dp import clipping as clipping_module
from medveil.dp.clipping import MARGIN, ClipCounts, clip_and_sum, encode_count
from medveil.dp.noise import NoiseMechanism, rounded_gaussian
from medveil.dp.sampling import PoissonSampler
from medveil.errors import GuaranteeError
from medveil.rng import SecureRandom, Seeds
from medveil.training import private
from medveil.training.private import PrivateTrainer

pytestmark = pytest.mark.statistical

TENSORS = ["conv weight", "conv bias", "norm weight", "norm bias", "linear weight", "linear bias"]


TESTS = 1e-7
COINS = Seeds(11)


def _failed(audited):
    return audit_components(audited).failed


def _names(components):
    return {component.name for component in components if not component.passed}


def _sensitivity(audited):
    return _names([check_sensitivity(audited.settled(), COINS)[0], check_divisor(audited.settled(), COINS)])


def _noise(audited):
    return _names(check_noise(audited.settled(), COINS, tests=TESTS)[0])


def _count(audited):
    return _names(check_count(audited.settled(), COINS, tests=TESTS)[0])


def _sampling(audited):
    return _names(check_sampling(audited.settled(), SecureRandom.seeded(COINS), tests=TESTS, steps=150)[0])


def test_without_a_mutant_the_same_checks_pass(step_of):
    audited = step_of()
    assert _sensitivity(audited) | _noise(audited) | _sampling(audited) == set()


@pytest.mark.parametrize("clipping", ["flat", "auto-s", "per-layer", "adaptive"])
def test_no_clipping(monkeypatch, step_of, clipping):
    def unclipped(_, gradients, total):
        total += torch.cat([rows.flatten(1).double() for rows in gradients], 1).nan_to_num(0, 0, 0).sum(0)
        return ClipCounts(len(gradients[0]))

    monkeypatch.setattr(private, "clip_and_sum", unclipped)
    assert "sensitivity" in _sensitivity(step_of(clipping))


@pytest.mark.parametrize("missing", range(len(TENSORS)), ids=TENSORS)
def test_a_tensor_that_the_norm_leaves_out(monkeypatch, step_of, missing):
    original = clipping_module._coefficients

    def lopsided(kind, norms, sizes):
        seen = norms.clone()
        seen[missing % len(seen)] = 0
        return original(kind, seen, sizes)

    monkeypatch.setattr(clipping_module, "_coefficients", lopsided)
    assert "sensitivity" in _sensitivity(step_of("auto-s" if missing % 2 else "flat"))


@pytest.mark.parametrize("missing", range(len(TENSORS)), ids=TENSORS)
def test_a_tensor_that_per_layer_clipping_leaves_out(monkeypatch, step_of, missing):
    original = clipping_module._coefficients

    def lopsided(kind, norms, sizes):
        factors, clipped = original(kind, norms, sizes)
        factors = factors.clone()
        factors[missing % len(factors)] = 1.0
        return factors, clipped

    monkeypatch.setattr(clipping_module, "_coefficients", lopsided)
    assert "sensitivity" in _sensitivity(step_of("per-layer"))


def test_a_bound_one_percent_too_large(monkeypatch, step_of):
    monkeypatch.setattr(clipping_module, "MARGIN", MARGIN * 1.01)
    assert "sensitivity" in _sensitivity(step_of())


def test_images_clipped_one_by_one(monkeypatch, step_of):
    original = PrivateTrainer._unit_views

    def each_alone(self, picked, seeds):
        images, targets, owners = original(self, picked, seeds)
        return images, targets, torch.arange(len(owners))

    monkeypatch.setattr(PrivateTrainer, "_unit_views", each_alone)
    assert "sensitivity" in _sensitivity(step_of(unit="patient"))


def test_views_clipped_one_by_one(monkeypatch, step_of):
    original = PrivateTrainer._unit_views

    def each_alone(self, picked, seeds):
        images, targets, owners = original(self, picked, seeds)
        return images, targets, torch.arange(len(owners))

    monkeypatch.setattr(PrivateTrainer, "_unit_views", each_alone)
    assert "sensitivity" in _sensitivity(step_of(unit="image", views=2))


def _noise_of(change):
    """A release whose noise is ``change(noise, mechanism, random)``."""

    def release(self, total, random):
        noise = rounded_gaussian(self.std_grid, self.dimension, random)
        return self.decode(self._rounded(total) + np.rint(change(noise, self, random)).astype(np.int64))

    return release


@pytest.mark.parametrize("factor", [0.0, 0.5, 0.9, 1.1])
def test_noise_of_another_size(monkeypatch, step_of, factor):
    monkeypatch.setattr(NoiseMechanism, "release", _noise_of(lambda noise, *_: factor * noise))
    assert "noise" in _noise(step_of())


@pytest.mark.parametrize("missing", range(len(TENSORS)), ids=TENSORS)
def test_a_tensor_without_noise(monkeypatch, step_of, missing):
    audited = step_of()
    sizes = [size for _, size in audited.tensors]
    start = sum(sizes[:missing])

    def holed(noise, mechanism, _):
        noise = noise.copy()
        if mechanism.dimension == sum(sizes):
            noise[start : start + sizes[missing]] = 0
        return noise

    monkeypatch.setattr(NoiseMechanism, "release", _noise_of(holed))
    assert "noise-by-tensor" in _noise(audited)


def test_noise_of_the_right_size_and_the_wrong_shape(monkeypatch, step_of):
    def uniform(_, mechanism, random):
        words = random.words(mechanism.dimension).astype(np.float64) / 2**64 - 0.5
        return words * math.sqrt(12) * mechanism.std_grid

    monkeypatch.setattr(NoiseMechanism, "release", _noise_of(uniform))
    assert "noise-shape" in _noise(step_of())


def test_no_noise_when_nobody_is_drawn(monkeypatch, step_of):
    original = NoiseMechanism.release
    monkeypatch.setattr(
        NoiseMechanism,
        "release",
        lambda self, total, random: original(self, total, random) if total.any() else total,
    )
    assert "noise" in _noise(step_of())


def test_every_step_draws_the_same_noise(monkeypatch, step_of):
    original = NoiseMechanism.release
    monkeypatch.setattr(
        NoiseMechanism, "release", lambda self, total, _: original(self, total, SecureRandom.seeded(Seeds(5)))
    )
    assert "noise-freshness" in _noise(step_of())


def test_every_trainer_draws_the_same_noise(monkeypatch, step_of):
    original = PrivateTrainer.__init__

    def begin(self, *arguments, **options):
        original(self, *arguments, **options)
        self._noise = SecureRandom.seeded(Seeds(5))

    monkeypatch.setattr(PrivateTrainer, "__init__", begin)
    assert _noise(step_of()) == {"noise-freshness"}


def test_half_of_the_noise_is_used_twice(monkeypatch, step_of):
    def doubled(noise, *_):
        half = noise.size // 2
        return np.concatenate([noise[:half], noise[: noise.size - half]])

    monkeypatch.setattr(NoiseMechanism, "release", _noise_of(doubled))
    assert "noise-freshness" in _noise(step_of())


def _shuffled(epochs):
    def draw(self):
        size = max(1, round(self.sampling_rate * self.num_units))
        left = epochs.get(id(self), np.zeros(0, dtype=np.int64))
        if left.size < size:
            left = self.random.permutation(self.num_units)
        epochs[id(self)] = left[size:]
        return np.sort(left[:size])

    return draw


def test_shuffled_batches(monkeypatch, step_of):
    monkeypatch.setattr(PoissonSampler, "draw", _shuffled({}))
    assert {"batch-sizes", "returns", "steps-apart"} <= set(_failed(step_of()))


def test_batches_of_fixed_size(monkeypatch, step_of):
    def draw(self):
        return self.random.choose(self.num_units, max(1, round(self.sampling_rate * self.num_units)))

    monkeypatch.setattr(PoissonSampler, "draw", draw)
    assert "batch-sizes" in _sampling(step_of())


@pytest.mark.parametrize("factor", [0.8, 2.0])
def test_another_sampling_rate(monkeypatch, step_of, factor):
    def draw(self):
        return np.flatnonzero(self.random.bernoulli(min(1.0, factor * self.sampling_rate), self.num_units))

    monkeypatch.setattr(PoissonSampler, "draw", draw)
    assert {"sampling-rate", "event"} <= set(_failed(step_of()))


def test_one_batch_for_ever(monkeypatch, step_of):
    def draw(self):
        coins = SecureRandom.seeded(Seeds(1))
        return np.flatnonzero(coins.bernoulli(self.sampling_rate, self.num_units))

    monkeypatch.setattr(PoissonSampler, "draw", draw)
    assert {"returns", "steps-apart"} <= _sampling(step_of())


def test_images_drawn_one_by_one(monkeypatch, step_of):
    monkeypatch.setattr(
        private,
        "choose_examples",
        lambda owner, _units, _most, random: np.flatnonzero(random.bernoulli(0.1, owner.size)),
    )
    assert "images-of-a-unit" in _sampling(step_of(unit="patient"))


def test_more_images_of_a_patient_than_the_plan_allows(monkeypatch, step_of):
    original = private.choose_examples
    monkeypatch.setattr(
        private, "choose_examples", lambda owner, units, _, random: original(owner, units, len(owner), random)
    )
    assert "images-of-a-unit" in _sampling(step_of(max_images=2))


def test_divisor_of_the_batch_that_was_drawn(monkeypatch, step_of):
    drawn = {}
    draw, set_gradients = PoissonSampler.draw, PrivateTrainer._set_gradients

    def noted(self):
        found = draw(self)
        drawn["size"] = max(1, found.size)
        return found

    def scaled(self, vector):
        set_gradients(self, vector * self._private.step.divisor / drawn["size"])

    monkeypatch.setattr(PoissonSampler, "draw", noted)
    monkeypatch.setattr(PrivateTrainer, "_set_gradients", scaled)
    assert "divisor" in _sensitivity(step_of())


def test_divisor_of_the_units_that_there_are(monkeypatch, step_of):
    set_gradients = PrivateTrainer._set_gradients

    def scaled(self, vector):
        set_gradients(self, vector * self._private.step.divisor / (0.1 * self._data.num_subjects))

    monkeypatch.setattr(PrivateTrainer, "_set_gradients", scaled)
    assert "divisor" in _sensitivity(step_of())


@pytest.mark.parametrize("factor", [0.5, 1.6])
def test_count_with_other_noise(monkeypatch, step_of, factor):
    def counted(clipping, counts, random):
        changed = clipping.count_noise_multiplier * factor
        return encode_count(clipping.model_copy(update={"count_noise_multiplier": changed}), counts, random)

    monkeypatch.setattr(private, "encode_count", counted)
    assert _count(step_of("adaptive")) == {"count-noise"}


def test_count_that_one_unit_moves_by_two(monkeypatch, step_of):
    def counted(clipping, counts, random):
        more = ClipCounts(2 * counts.units, 2 * counts.clipped, 2 * counts.non_finite)
        return encode_count(clipping, more, random)

    monkeypatch.setattr(private, "encode_count", counted)
    assert "count-sensitivity" in _count(step_of("adaptive"))


def test_an_event_that_says_less_than_the_step_does(step_of):
    audited = step_of()
    object.__setattr__(audited.step, "event", audited.step.event.model_copy(update={"sampling_rate": 0.05}))
    with pytest.raises(GuaranteeError, match="does not do what its event says"):
        audit_components(audited)


def test_the_real_clip_is_the_one_that_was_mutated():
    assert private.clip_and_sum is clip_and_sum
