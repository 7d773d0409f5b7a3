"""The private step against plain autograd, patient by patient."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from medveil.dp.binding import bind
from medveil.dp.settings import CentralDpSgd
from medveil.rng import SecureRandom, Seeds
from medveil.training.arrays import ArrayData, InputScale
from medveil.training.private import Privately, PrivateTrainer
from medveil.training.settings import Performance, Training

NOISELESS = 2e-6
OWNERS = [0, 0, 1, 2, 2, 2, 3, 3, 4, 5]


def data(seed=0):
    generator = torch.Generator().manual_seed(seed)
    count = len(OWNERS)
    return ArrayData(
        images=torch.rand(count, 1, 6, 6, generator=generator),
        targets=torch.randint(0, 2, (count,), generator=generator),
        subject=np.array(OWNERS),
        volume=np.zeros(count, dtype=np.int64),
        position=np.zeros(count, dtype=np.int64),
        spacing_mm=(None,) * count,
        num_subjects=6,
    )


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))


def trainer(*, unit="patient", rate=1.0, multiplier=NOISELESS, clip=0.5, views=1, nominal=6, random=None, **options):
    mechanism = CentralDpSgd.model_validate(
        {
            "sampling": {"rate": rate, "nominal_units": nominal, **options.pop("sampling", {})},
            "clipping": options.pop("clipping", {"kind": "flat", "l2_clip_norm": clip}),
            "noise": {"multiplier": multiplier},
            "views": views,
        }
    )
    bound = bind(mechanism, unit=unit, relation="add-remove", delta=1e-3, trusted="curator", steps=1000, parties=1)
    model = network()
    dimension = sum(parameter.numel() for parameter in model.parameters())
    privately = Privately(bound.step(dimension, "pool", 1), unit, random or SecureRandom())
    return PrivateTrainer(
        model,
        data(),
        options.pop("settings", Training()),
        private=privately,
        performance=Performance(dp_method=options.pop("method", "microbatch")),
        scale=InputScale(),
        num_classes=2,
        seeds=Seeds(0),
        device=torch.device("cpu"),
    )


def gradient(made):
    assert made.accumulate_gradient(0) is None
    return torch.cat([parameter.grad.flatten() for parameter in made.parameters]).double().numpy()


def expected(owners, clip, divisor):
    model, examples, scale = network(), data(), InputScale()
    rows = []
    for image, target in zip(examples.images, examples.targets, strict=True):
        model.zero_grad()
        functional.cross_entropy(model(scale(image[None])), target[None]).backward()
        rows.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).double().numpy())
    rows, total = np.array(rows), 0
    for owner in sorted(set(owners)):
        mean = rows[[number for number, mine in enumerate(owners) if mine == owner]].mean(0)
        total = total + mean * min(1, clip / np.linalg.norm(mean))
    return total / divisor


@pytest.mark.parametrize("method", ["microbatch", "vmap", "layerwise", "auto"])
def test_every_patient_counts_once_with_the_clipped_mean_of_their_images(method):
    made = trainer(method=method)
    assert np.allclose(gradient(made), expected(OWNERS, 0.5, 6), atol=2e-4)


def test_as_images_every_image_counts():
    assert np.allclose(gradient(trainer(unit="image")), expected(list(range(len(OWNERS))), 0.5, 6), atol=2e-4)


def test_the_divisor_is_public():
    assert np.allclose(gradient(trainer(nominal=60)), expected(OWNERS, 0.5, 60), atol=2e-5)


def test_views_of_an_unchanged_image_change_nothing():
    assert np.allclose(gradient(trainer(views=3)), expected(OWNERS, 0.5, 6), atol=2e-4)


def test_blocks_of_patients_add_up(monkeypatch):
    monkeypatch.setattr("medveil.training.private._BLOCK", 2)
    assert np.allclose(gradient(trainer()), expected(OWNERS, 0.5, 6), atol=2e-4)


def test_at_most_max_images_of_a_patient_are_used(monkeypatch):
    made, used = trainer(sampling={"max_images": 1}), []
    several = made._views.several
    monkeypatch.setattr(made._views, "several", lambda picked, *rest: used.append(picked) or several(picked, *rest))
    gradient(made)
    assert sorted(np.array(OWNERS)[torch.cat(used)]) == [0, 1, 2, 3, 4, 5]


def test_nobody_drawn_is_still_noise():
    made = trainer(rate=1e-9, multiplier=1.0)
    noisy = gradient(made) * 1e-9 * 6
    assert np.all(np.isfinite(noisy))
    assert 0.3 < noisy.std() < 0.8  # one clip norm of 0.5, 200 numbers


def test_noise_has_the_size_that_the_plan_says():
    made = trainer(multiplier=3.0, clip=0.1)
    noise = np.concatenate([(gradient(made) - expected(OWNERS, 0.1, 6)) * 6 for _ in range(20)])
    # 20 * 128 numbers: a standard error of 1.4 %; seven of them.
    assert abs(noise.std() / 0.3 - 1) < 0.1


def test_the_gradient_of_a_step_is_one_draw():
    made = trainer(multiplier=1.0)
    assert not np.array_equal(gradient(made), gradient(made))


def test_seeded_randomness_repeats():
    one, two = (gradient(trainer(rate=0.5, multiplier=1.0, random=SecureRandom.seeded(Seeds(4)))) for _ in range(2))
    assert np.array_equal(one, two)


def test_the_adaptive_bound_moves_towards_the_quantile():
    clipping = {"kind": "adaptive", "l2_clip_norm": 1e-3, "count_noise_multiplier": 0.01, "learning_rate": 0.5}
    made = trainer(clipping=clipping, multiplier=0.001)
    before = made._clipping.l2_clip_norm
    gradient(made)
    assert made._clipping.l2_clip_norm > before  # all six are clipped, so the bound is too small


def test_its_size_is_not_told():
    assert trainer().num_examples is None
