"""Property inference: the filter against its definition, batches counted, and what can and cannot be told."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from medveil.attacks import property as inference
from medveil.attacks import release
from medveil.attacks.property import PropertyInference
from medveil.attacks.property_engine import (
    BATCH,
    MANY,
    Side,
    batches,
    clipped,
    clipped_side,
    matched_filter,
    one_image_each,
    tell_apart,
)
from medveil.attacks.scene import Protection, Scene
from medveil.dp.clipping import FlatClipping
from medveil.errors import AttackError
from medveil.rng import Seeds
from medveil.training.arrays import InputScale


def sides(shift, dimension=12, images=120):
    """Gradients that differ by ``shift`` along the first axis where an image has the property."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(2):
        has = np.arange(images) % 2 == 0
        rows = random.normal(0, 1, (images, dimension))
        rows[:, 0] += shift * has
        found.append(Side(torch.from_numpy(rows).float(), {"it": has}))
    return found


def told(shift, noise_multiplier, clipping=None):
    public, private = sides(shift)
    if clipping is not None:
        public, private = (clipped_side(each, clipping, [5, 7]) for each in (public, private))
    figure, _ = tell_apart(
        public,
        private,
        "it",
        clipping=clipping,
        noise_multiplier=noise_multiplier,
        pairs=40,
        seeds=Seeds(3),
    )
    return figure


def test_a_property_that_moves_gradients_is_told_and_one_that_does_not_is_not():
    assert told(3.0, 0.0).low > 0.95
    nothing = told(0.0, 0.0)
    assert nothing.low < 0.5 < nothing.high


def test_noise_through_the_real_mechanism_hides_it_at_last():
    clip = FlatClipping(l2_clip_norm=1.0)
    assert told(3.0, 0.01, clip).low > 0.95
    hidden = told(3.0, 1000.0, clip)
    assert hidden.low < 0.5 < hidden.high


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_the_filter_solves_its_definition(noise):
    public, _ = sides(1.0, dimension=6, images=50)
    rows, has = public.gradients.double().numpy(), public.has["it"]
    within = np.concatenate([rows[has] - rows[has].mean(0), rows[~has] - rows[~has].mean(0)])
    covariance = within.T @ within / len(rows) / BATCH
    ridge = 0.01 * np.trace(covariance) / 6
    wanted = np.linalg.solve(covariance + (noise**2 + ridge) * np.eye(6), rows[has].mean(0) - rows[~has].mean(0))
    found = matched_filter(public.gradients, has, noise).numpy()
    np.testing.assert_allclose(found, wanted / np.linalg.norm(wanted), rtol=1e-5, atol=1e-7)


def test_batches_hold_exactly_as_many_as_asked():
    has = np.arange(100) % 3 == 0
    drawn = batches(has, [8, 24, 0], Seeds(0))
    assert has[drawn].sum(1).tolist() == [8, 24, 0]
    assert all(len(set(row.tolist())) == BATCH for row in drawn)


def test_clipped_rows_are_never_longer_than_the_bound():
    rows = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    found = clipped(rows, FlatClipping(l2_clip_norm=1.0), [1, 1])
    np.testing.assert_allclose(found, [[0.6, 0.8], [0.3, 0.4]], rtol=1e-3)


def test_batches_are_released_as_a_step_releases_them(monkeypatch):
    """Against the sum that goes through clip and noise at once, with the same seeds."""
    clip, sizes, seen = FlatClipping(l2_clip_norm=1.0), [5, 7], []
    mechanism = release.NoiseMechanism

    class Watched(mechanism):
        def release(self, total, random):
            seen.append(super().release(total, random))
            return seen[-1]

    monkeypatch.setattr(release, "NoiseMechanism", Watched)
    public, private = sides(1.0)
    known, attacked = (clipped_side(each, clip, sizes) for each in (public, private))
    tell_apart(known, attacked, "it", clipping=clip, noise_multiplier=0.5, pairs=10, seeds=Seeds(3))
    assert len(seen) == 20
    drawn = batches(private.has["it"], [MANY] * 10, Seeds(3).child("batches", 1))
    for number, rows in enumerate(drawn):
        units = [torch.split(private.gradients[row], sizes) for row in rows]
        wanted = release.protected_sum(units, clip, 0.5, Seeds(3).child("noise", 1, number))
        np.testing.assert_allclose(seen[10 + number], wanted, atol=1e-5)


def test_large_networks_get_fewer_pairs_and_never_too_few():
    size = inference.Size(images=100, pairs=50, curve=(1e4, 10.0), noise=12e6)
    assert [inference.pairs_of(size, each) for each in (1_000, 50_000, 10**9)] == [50, 20, 12]


def scene_of(images=100, bright=True):
    random = torch.Generator().manual_seed(0)
    pixels = torch.rand(images, 1, 8, 8, generator=random)
    if bright:
        pixels[::2] *= 0.5
    targets = torch.arange(images) % 4 // 2
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():
        model[1].weight.copy_(0.1 * torch.randn(2, 64, generator=random))
        model[1].bias.zero_()
    return Scene(
        model=model,
        trained=model,
        loss=lambda logits, truth: functional.cross_entropy(logits, truth, reduction="none"),
        scale=InputScale(),
        task="classification",
        num_classes=2,
        images=pixels,
        targets=targets,
        subject=np.arange(images),
        public=pixels.flip(0),
        public_targets=targets.flip(0),
        public_subject=np.arange(images),
        protection=Protection(FlatClipping(l2_clip_norm=1.0), 1.0, 0.25, 100, 1e-5, 8.0),
    )


def test_the_report_promises_nothing(monkeypatch):
    monkeypatch.setitem(inference.SIZES, "quick", inference.Size(images=100, pairs=15, curve=(1e4,), noise=1e9))
    scene = scene_of()
    report = PropertyInference().run(scene, effort="quick", seeds=Seeds(0), tell=lambda _: None)
    assert report.succeeded_unprotected
    assert report.to_json()["bound"] is None
    assert any("does not promise" in each for each in report.findings)
    control = report.control.figures["class_mix_auc"]
    assert control.low < 0.5 < control.high
    assert report.protected.condition.epsilon == 8.0
    assert report.curve[0].condition.epsilon_of_release == pytest.approx(1e4, rel=0.01)
    bare = PropertyInference().run(replace(scene, protection=None), effort="quick", seeds=Seeds(0), tell=lambda _: None)
    assert bare.protected is None


def test_every_patient_gives_one_image():
    subject = np.array([5, 5, 9, 2, 9, 9, 2])
    rows = one_image_each(subject)
    assert sorted(subject[rows].tolist()) == [2, 5, 9]
    assert rows.tolist() == one_image_each(subject).tolist()


def test_images_of_few_patients_are_refused():
    """Enough images, but of 20 patients: a batch of 32 would hold one of them twice."""
    with pytest.raises(AttackError, match="training patients"):
        PropertyInference().check(replace(scene_of(), subject=np.arange(100) % 20))


def test_too_few_of_a_kind_are_refused():
    with pytest.raises(AttackError, match="class_mix"):
        PropertyInference().check(replace(scene_of(), targets=torch.zeros(100, dtype=torch.int64)))
